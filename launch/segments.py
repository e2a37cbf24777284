"""Shared-memory files that a run's processes use, so that what a killed one leaves behind can be removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

_FOLDER = Path("/dev/shm")
# vLLM's message queues, Python's semaphores, our weights, PyTorch's shared tensors and counts of shared GPU memory,
# what NCCL moves between GPUs of a machine, DeepSpeed's sums on the CPU; nobody removes them for a process that was
# killed.
_KINDS = ("psm_*", "sem.mp-*", "primezero-*", "torch_*", "nccl-*", "deepspeed_allreduce_buffer_*")


def existing() -> set[Path]:
    """All files of these kinds, whosever they are."""
    return {path for kind in _KINDS for path in _FOLDER.glob(kind)}


def used_by(processes: Iterable[psutil.Process]) -> set[Path]:
    """Files of these kinds that one of the processes has mapped or open now."""
    used = {inode for process in processes for inode in _inodes(process.pid)}
    found = set()
    for path in existing():
        with contextlib.suppress(OSError):
            if path.stat().st_ino in used:
                found.add(path)
    return found


def remove(segments: set[Path]) -> None:
    """Remove those that are left; somebody else's are not ours to remove, and stay."""
    for path in segments:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _inodes(pid: int) -> Iterator[int]:
    """Of everything in shared memory that a process has mapped or open.

    A semaphore is mapped under another name than it has in the end, so names do not tell.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/dev/shm/"):
                yield int(fields[4])
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(descriptor).startswith("/dev/shm/"):
                    yield descriptor.stat().st_ino
