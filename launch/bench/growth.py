"""Samples of what a run's processes hold, and how much of it grew."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launch.bench.report import Result
from shared.errors import PrimezeroError


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes of one label hold: bytes of memory (PSS), open files, and how many processes they are."""

    memory: int
    files: int
    count: int = 1

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.memory + other.memory, self.files + other.files, self.count + other.count)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a run, `seconds` after its first step: usage by label; its files in shared memory."""

    seconds: float
    usage: Mapping[str, Usage]
    shm_bytes: int
    shm_files: int


@dataclass(frozen=True, slots=True)
class Change:
    """Medians over the first and the last window."""

    begin: float
    end: float

    @property
    def percent(self) -> float | None:
        """Growth in percent; None from nothing."""
        return 100 * (self.end / self.begin - 1) if self.begin else None


def change(samples: Sequence[Sample], value: Callable[[Sample], float], *, begin_s: float, window_s: float) -> Change:
    """From the window that begins at `begin_s` to the last window of the samples.

    Medians, since single samples fall into moments such as an evaluation or a checkpoint. Raises PrimezeroError where
    there are no two windows.
    """
    end_s = samples[-1].seconds if samples else 0.0
    first = [value(s) for s in samples if begin_s <= s.seconds < begin_s + window_s]
    last = [value(s) for s in samples if s.seconds > end_s - window_s]
    if not first or not last or begin_s + window_s > end_s - window_s:
        raise PrimezeroError(
            f"{end_s:.0f} s of samples do not hold two windows of {window_s:g} s from second {begin_s:g} on: raise "
            "--minutes"
        )
    return Change(statistics.median(first), statistics.median(last))


def growth_results(samples: Sequence[Sample], *, begin_s: float, window_s: float) -> Iterator[Result]:
    """Per label, of those that were there in both windows: memory, its growth, open files; then of all together."""

    def over(value: Callable[[Sample], float]) -> Change:
        return change(samples, value, begin_s=begin_s, window_s=window_s)

    nothing = Usage(0, 0, 0)
    against = f"at minute {begin_s / 60:g}"
    labels = sorted({label for sample in samples for label in sample.usage})
    for label in labels:
        count = over(lambda s, label=label: s.usage.get(label, nothing).count)  # type: ignore[misc]
        if not count.begin or not count.end:
            continue
        memory = over(lambda s, label=label: s.usage.get(label, nothing).memory)  # type: ignore[misc]
        files = over(lambda s, label=label: s.usage.get(label, nothing).files)  # type: ignore[misc]
        yield from _memory(label, memory, against)
        yield Result(f"{label}.files", files.end, "", files.begin, against)
    yield from _memory("all", over(lambda s: sum(usage.memory for usage in s.usage.values())), against)
    processes = over(lambda s: sum(usage.count for usage in s.usage.values()))
    files = over(lambda s: sum(usage.files for usage in s.usage.values()))
    yield Result("all.processes", processes.end, "", processes.begin, against)
    yield Result("all.files", files.end, "", files.begin, against)
    for name, unit, shm in (
        ("shm.bytes", "B", over(lambda s: s.shm_bytes)),
        ("shm.files", "", over(lambda s: s.shm_files)),
    ):
        yield Result(name, shm.end, unit, shm.begin, against)


def _memory(label: str, memory: Change, against: str) -> Iterator[Result]:
    yield Result(f"{label}.memory", memory.end / 2**20, "MiB", memory.begin / 2**20, against)
    if memory.percent is not None:
        yield Result(f"{label}.growth", memory.percent, "%")
