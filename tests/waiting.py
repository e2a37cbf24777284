"""Waiting in tests."""

from __future__ import annotations

import threading
from collections.abc import Callable


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread or process does; a test that waits in vain runs into its own time limit."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.005)
