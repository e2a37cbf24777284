"""Where DeepSpeed compiles its optimizer for the host's cores, and that nobody waits there for who has died."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_FOLDER = "TORCH_EXTENSIONS_DIR"
# By which PyTorch tells that somebody is compiling. It stays when that process is killed, and is then waited for
# for ever.
_BATON = "lock"


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """One process of this user at a time compiles, or waits here; what was compiled before is loaded.

    In a folder of our own, so that a baton found in it is nobody's.
    """
    before = os.environ.get(_FOLDER)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(before or cache / "torch_extensions") / "primezero"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[_FOLDER] = str(folder)
    try:
        with (folder / "compiling").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it with the process
            for baton in folder.rglob(_BATON):
                baton.unlink()
            yield
    finally:
        if before is None:
            del os.environ[_FOLDER]
        else:
            os.environ[_FOLDER] = before
