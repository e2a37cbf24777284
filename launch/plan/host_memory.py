"""How much memory this machine, or the container that it is, has left."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def container_limit(files: tuple[Path, ...] = CGROUP) -> int | None:
    """Bytes that the container may take; None where it has no limit."""
    for file in files:
        try:
            return int(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no such file; "max"
            continue
    return None


def available_memory() -> int:
    """Bytes that are available: of the machine, or the container's limit where that is less."""
    available = psutil.virtual_memory().available
    return min(available, container_limit() or available)
