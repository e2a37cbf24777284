"""The run folder: made before anything starts, private, never two runs in one."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared.config import Config, dump_toml
from shared.errors import ConfigError

CONFIG_FILE = "config.toml"
STOP_FILE = "STOP"
# Marks a folder as a run's; locked while that run lives.
LOCK_FILE = ".primezero-run"


@contextlib.contextmanager
def open_run_folder(config: Config) -> Iterator[Path]:
    """`<run.folder>/<run.name>`, new, with the resolved configuration and an empty logs/ in it.

    Raises ConfigError when the folder is taken (and `run.overwrite` is off, it is no run, or its run
    still lives), or cannot be written.
    """
    folder = config.run_folder.resolve()
    try:
        if folder.exists():
            _remove_earlier(folder, overwrite=config.run.overwrite)
        folder.mkdir(parents=True, mode=0o700)
        lock = (folder / LOCK_FILE).open("w")
        (folder / "logs").mkdir()
        (folder / CONFIG_FILE).write_text(dump_toml(config))
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {folder}: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder


def _remove_earlier(folder: Path, *, overwrite: bool) -> None:
    if not (folder / LOCK_FILE).is_file():
        raise ConfigError(f"{folder} exists and is not a run: it is left alone; choose another --run.name")
    with (folder / LOCK_FILE).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder} belongs to a run that is still going: choose another --run.name") from error
        if not overwrite:
            raise ConfigError(f"{folder} exists: choose another --run.name, or pass --run.overwrite true to replace it")
        shutil.rmtree(folder)
