"""Writing a run's files: what a full disk, or one that takes nothing more, is called to the user."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import DiskError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries that are not Python's say it in words alone.
_FULL_IN_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
_NEXT_TO_NOTHING = 2**20
_GOES_ON = "give the same command again: the run goes on from its last checkpoint"


@contextmanager
def writing(path: Path, *library_errors: type[Exception]) -> Iterator[None]:
    """What fails to be written at `path` inside of this becomes a DiskError that says what to do.

    library_errors: what a library that writes there raises, besides OSError
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *library_errors)):
            raise
        raise DiskError(f"cannot write {path}: {reason(error)}; {what_to_do(path, error)}") from error


def what_to_do(path: Path, error: Exception) -> str:
    """After a write at `path` has failed."""
    # PyTorch does not say why it failed; what it has begun to write still takes up the room.
    if is_full(error) or free_bytes(path) < _NEXT_TO_NOTHING:
        folder = _existing(path)
        return f"{size(free_bytes(path))} free in {folder}. Make room there, and {_GOES_ON}"
    return f"see to it that it can be written, and {_GOES_ON}"


def reason(error: Exception) -> str:
    """Without the file's name and the error's number, where there are such."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def is_full(error: Exception) -> bool:
    """Whether a write has failed for want of room: on the disk, or of what one user, or one file, may have."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(words in str(error) for words in _FULL_IN_WORDS)


def free_bytes(path: Path) -> int:
    """What this user can still write where `path` is, or will be."""
    return shutil.disk_usage(_existing(path)).free


def size(nbytes: float) -> str:
    """Bytes for a reader."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _existing(path: Path) -> Path:
    # Path.is_dir would raise for one that this user may not look at, or whose name is too long.
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.isdir(folder))
