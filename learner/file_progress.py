"""Signs of life from long reading and writing inside libraries, which report nothing: bytes that have moved since."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOK_S = 1.0
# Read in between by anything else, such as the wake-ups of a socket's thread.
_NOISE_BYTES = 2**20
# SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER.
_WRITE_AND_WAIT = 1 | 2 | 4


@contextmanager
def beating_with(progress: Callable[[], int], beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` every second in which `progress` has changed, on a thread, for as long as the context lasts.

    Work that stands still, on a disk that hangs, gives no signs.
    """
    over = threading.Event()

    def look() -> None:
        before = progress()
        while not over.wait(LOOK_S):
            now = progress()
            if now != before:
                beat()
            before = now

    thread = threading.Thread(target=look, name="file-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def bytes_in(folder: Path) -> int:
    """Of all files in a folder that is being written."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # renamed or removed meanwhile
            total += path.stat().st_size
    return total


def bytes_read() -> int:
    """By this process so far, to a MiB."""
    with open("/proc/self/io", "rb") as file:
        return int(file.readline().split()[1]) // _NOISE_BYTES


def flush(path: Path, beat: Callable[[], None], *, part_bytes: int = 2**28) -> None:
    """Have a file or folder on the disk, with a beat after each part of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not path.is_dir():
            for start in range(0, os.fstat(descriptor).st_size, part_bytes):
                _flush_range(descriptor, start, part_bytes)
                beat()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beat()


def _flush_range(descriptor: int, start: int, nbytes: int) -> None:
    """Write these bytes of a file back, and wait for it, where the system can; `fsync` does what it has not done."""
    sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if sync_file_range is not None:
        offset, count = ctypes.c_int64(start), ctypes.c_int64(nbytes)
        sync_file_range(ctypes.c_int(descriptor), offset, count, ctypes.c_uint(_WRITE_AND_WAIT))
