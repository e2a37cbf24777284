"""The processes of a run that are on this machine: known by their marks, with the shared memory that they use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

import psutil

from launch import marked_processes, segments

LEAVE_S = 3.0
KILLED_S = 30.0


class LocalProcesses:
    """Remembers what has been seen, since who is killed cannot be asked any more; ends it, and removes what it leaves.

    folder: private, which the marks begin with; on_use: told which shared memory has been seen in use
    """

    def __init__(self, folder: Path, on_use: Callable[[Collection[Path]], None] = lambda _: None) -> None:
        self._folder = folder
        self._on_use = on_use
        self._trees: dict[str, set[psutil.Process]] = {}
        self._segments: set[Path] = set()

    def mark(self, name: str) -> str:
        """What is to stand in the environment of the process of this name, and of all that it starts."""
        return f"{self._folder}/{name}"

    def note(self) -> set[psutil.Process]:
        """Living processes: they, and the shared memory they use, are remembered."""
        living: set[psutil.Process] = set()
        for mark, processes in marked_processes.marked(self.mark("")).items():
            self._trees.setdefault(mark.removeprefix(self.mark("")), set()).update(processes)
            living |= processes
        self._segments |= segments.used_by(living)
        self._on_use(self._segments)
        return living

    def resident_bytes(self) -> dict[str, int]:
        """Memory of each name's living processes, as last noted; what they share counts for each of them."""
        return {name: sum(map(_resident_bytes, processes)) for name, processes in self._trees.items()}

    def end(self, names: Collection[str]) -> list[int]:
        """End the processes of these names, and remove what only they had in use; those that cannot be killed."""
        tree = set().union(*(self._trees.pop(name, set()) for name in names))
        left = marked_processes.end(tree, leave_s=LEAVE_S, killed_s=KILLED_S)
        if not left:
            leaked = self._segments - segments.used_by(self.note())
            segments.remove(leaked)
            self._segments -= leaked
        return [process.pid for process in left]

    def end_all(self, leave: Callable[[], None] = lambda: None) -> None:
        """End everything, Ray's own helpers included, after `leave` has been called."""
        self.note()
        processes = marked_processes.unnamed(self._folder).union(*self._trees.values())
        leave()
        # Some of Ray's own helpers would stay for minutes.
        marked_processes.end(processes, leave_s=LEAVE_S, killed_s=LEAVE_S)
        segments.remove(self._segments)


def _resident_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        if process.is_running():  # else its id may be another's by now
            return int(process.memory_info().rss)
    return 0  # it has ended
