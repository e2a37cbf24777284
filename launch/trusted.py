"""Whether what a run would go on from can have been put there by its own user alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shared.errors import ConfigError

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def check_trusted(folder: Path, deep: str) -> None:
    """ConfigError where another user owns or can write the run's folder, what is in it, or anything below `deep`.

    Also where one of them is a symbolic link: what it leads to is nobody's to vouch for.
    """
    for path in _entries(folder, deep):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise ConfigError(
                f"{path} is a symbolic link, and what it leads to is not to be trusted: put there what it stands for, "
                "or choose another --run.name"
            )
        if status.st_uid != os.getuid() or status.st_mode & _WRITABLE:
            raise ConfigError(
                f"{path} belongs to, or can be written by, another user: what is in it is not to be trusted; choose "
                f"another --run.name, or, where you trust it, `chown -R $USER {folder} && chmod -R go-w {folder}`"
            )


def _entries(folder: Path, deep: str) -> Iterator[Path]:
    yield folder
    yield from folder.iterdir()
    if not (folder / deep).is_symlink():
        for parent, folders, files in os.walk(folder / deep, followlinks=False):
            yield from (Path(parent) / name for name in (*folders, *files))
