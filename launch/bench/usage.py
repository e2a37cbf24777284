"""Looking at a run's processes: whose they are, and what they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from launch import marked_processes
from launch.bench.growth import Sample, Usage
from launch.segments import used_by

_ACTORS = ("LearnerProcess", "RolloutProcess")
# What processes call themselves, and modules that Python processes run.
_TITLES = ("EngineCore", "RolloutWorker", "fork server", "IDLE")
_MODULES = ("resource_tracker", "spawn_main", "reaper")


class Watch:
    """Samples one run.

    Memory is the proportional set size: what several processes share, such as libraries and the segment of weights,
    counts once in their sum, while every page that a leak adds is its owner's in full. The resident set size would
    count what is shared in each of them, and show growth where one process only touches what another has had.
    """

    def __init__(self, launcher: int) -> None:
        """launcher: its process id"""
        self._launcher = launcher
        self._segments: set[Path] = set()

    def sample(self, processes: Sequence[psutil.Process], seconds: float) -> Sample:
        """What these, all of the run, hold now. One that ends meanwhile is left out."""
        usage: dict[str, Usage] = {}
        for process in processes:
            with contextlib.suppress(OSError, psutil.Error):
                held = Usage(process.memory_full_info().pss, process.num_fds())
                label = "launcher" if process.pid == self._launcher else label_of(process)
                usage[label] = usage[label] + held if label in usage else held
        # One that nobody has open any more, but is still there, is a leak, and counts.
        self._segments |= used_by(processes)
        sizes = list(_sizes(self._segments))
        return Sample(seconds, usage, sum(sizes), len(sizes))


def label(owner: str | None, words: Sequence[str], name: str) -> str:
    """What to call a process: the actor's own name; what belongs to an actor, after it; Ray's helpers, after Ray.

    owner: the actor that it belongs to, as rollout-0; words: its command line; name: as the system knows it
    """
    line = " ".join(words)
    if owner is not None and any(actor in line for actor in _ACTORS):
        return owner
    title = words[0] if words else name
    script = next((Path(word).stem for word in words[1:] if word.endswith(".py")), Path(name).name)
    # The raylet's command line has those of its workers in it.
    known = [*(t for t in _TITLES if t in title), *(m for m in _MODULES if m in line and "python" in title)]
    what = known[0] if known else script
    return f"{owner or 'ray'} {what}"


def label_of(process: psutil.Process) -> str:
    """What to call a process of a run (`label`)."""
    mark = process.environ().get(marked_processes.VARIABLE)
    return label(Path(mark).name if mark else None, process.cmdline(), process.name())


def _sizes(paths: Iterable[Path]) -> Iterable[int]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield path.stat().st_size
