"""Ctrl-C and SIGTERM while a run is on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from shared.errors import RunInterruptedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Ctrl-C once asks the learner to stop after its step, and `tell`s; twice, or SIGTERM, is for `check` to find.

    Nothing is raised where the program happens to stand: other code, such as Ray's, would take it for a failure of its
    own, go on with half of what it was doing, or leave a lock that nobody can take any more.

    Use as a context manager, on the main thread.
    """

    def __init__(self, stop_file: Path, tell: Callable[[], None]) -> None:
        self._stop_file = stop_file
        self._tell = tell
        self._interrupted = False
        self._leaving: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {each: signal.signal(each, self._on_signal) for each in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def check(self) -> None:
        """To be called every second or so. Raises RunInterruptedError when the run is to be ended at once."""
        if self._leaving is not None:
            raise RunInterruptedError(self._leaving)

    def _on_signal(self, signum: int, _: object) -> None:
        if signum == signal.SIGTERM or self._interrupted or not self._asked_to_stop():
            self._leaving = self._leaving or signum  # more of them change nothing
        else:
            self._interrupted = True
            self._tell()

    def _asked_to_stop(self) -> bool:
        try:
            self._stop_file.touch()
        except OSError:  # a disk without room: the learner cannot be asked
            return False
        return True
