"""Shared-memory files that a run's processes use, so that what a killed one leaves behind can be removed."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import psutil

# vLLM's message queues, Python's semaphores, and our weights; nobody removes them for a process that was killed.
_OURS = re.compile(r"/dev/shm/(?:psm_|sem\.mp-|primezero-)\S+")


def segments_of_descendants() -> set[Path]:
    """Files of these kinds that a descendant of this process has mapped or open now."""
    found: set[Path] = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            found |= {Path(match) for match in _OURS.findall(maps)}
        with contextlib.suppress(psutil.Error):
            found |= {Path(file.path) for file in process.open_files() if _OURS.fullmatch(file.path)}
    return found


def remove(segments: set[Path]) -> None:
    """Remove those that are left; somebody else's are not ours to remove, and stay."""
    for path in segments:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
