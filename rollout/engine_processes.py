"""Ending the engine's processes, those that they started included."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import psutil


def with_descendants(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """The processes, and all that they have started."""
    found = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found += process.children(recursive=True)
    return found


def kill(processes: Sequence[psutil.Process]) -> None:
    """End them, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
