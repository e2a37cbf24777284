"""Shared memory that processes leave behind: theirs, and not what tests beside them have."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from launch.segments import used_by

_EVERY_S = 2.0
_SEMAPHORES_S = 60.0


class UsedSegments:
    """Notes from its making on what these processes have in use, since who has ended cannot be asked any more.

    processes: those that are alive now
    """

    def __init__(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        self.seen: set[Path] = set()
        self._watched = [processes]
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def watch(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        """These too."""
        self._watched.append(processes)

    def left(self) -> set[Path]:
        """Ends the watch; what is still there, and used by nobody. Python removes semaphores a little later."""
        self._enough.set()
        self._thread.join()
        deadline = time.monotonic() + _SEMAPHORES_S
        while True:
            there = {path for path in self.seen if path.exists()}
            left = there - used_by(psutil.process_iter()) if there else there
            if all(path.name.startswith("sem.") for path in left) and left and time.monotonic() < deadline:
                time.sleep(0.2)
            else:
                return left

    def _watch(self) -> None:
        while not self._enough.wait(_EVERY_S):
            for processes in self._watched:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.seen |= used_by(processes())
