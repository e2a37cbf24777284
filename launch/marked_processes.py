"""Processes known by a mark in their environment, which all that they start inherits, orphans included."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import psutil

VARIABLE = "PRIMEZERO_PROCESS"
_POLL_S = 0.05


def marked(prefix: str) -> dict[str, set[psutil.Process]]:
    """Living processes by their mark, of those whose mark begins with `prefix`."""
    found: dict[str, set[psutil.Process]] = {}
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, value = entry.decode(errors="replace").partition("=")
                if name == VARIABLE and value.startswith(prefix):
                    found.setdefault(value, set()).add(psutil.Process(pid))
    return found


def of_start(folder: Path) -> set[psutil.Process]:
    """All that are left of a start with this private folder, which its marks begin with."""
    return unnamed(folder).union(*marked(f"{folder}/").values())


def unnamed(folder: Path) -> set[psutil.Process]:
    """Other processes whose environment is overwritten from its start on, and that keep a file of this folder open.

    Ray's agents write the title that they give themselves over it, and zeros behind: over the mark, or not that far.
    """
    found = set()
    for pid in set(psutil.pids()) - {os.getpid()}:
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            overwritten = Path(f"/proc/{pid}/environ").read_bytes()[:1] in (b"", b"\0")
            if overwritten and _keeps_open(pid, f"{folder}/"):
                found.add(psutil.Process(pid))
    return found


def _keeps_open(pid: int, prefix: str) -> bool:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(descriptor).startswith(prefix):
                return True
    return False


def end(processes: Collection[psutil.Process], *, leave_s: float, killed_s: float) -> list[psutil.Process]:
    """Let them leave for a while, kill those that stay, and return once all are gone; or those that are not."""
    for process in _staying(processes, leave_s):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return _staying(processes, killed_s)


def lives(process: psutil.Process) -> bool:
    """Whether it still runs, or at least holds anything."""
    # A zombie holds nothing any more; it waits for a parent that may never ask.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _staying(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if lives(process)]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return left
