"""The run folder: made before anything starts, private, never two runs in one."""

from __future__ import annotations

import shutil
from pathlib import Path

from shared.config import Config, dump_toml
from shared.errors import ConfigError

CONFIG_FILE = "config.toml"
STOP_FILE = "STOP"


def make_run_folder(config: Config) -> Path:
    """Create `<run.folder>/<run.name>` with the resolved configuration and an empty logs/ in it.

    Raises ConfigError when the folder is taken (and `run.overwrite` is off, or it is no run), or
    cannot be written.
    """
    folder = config.run_folder.resolve()
    try:
        if folder.exists():
            _remove_earlier(folder, overwrite=config.run.overwrite)
        folder.mkdir(parents=True, mode=0o700)
        (folder / "logs").mkdir()
        (folder / CONFIG_FILE).write_text(dump_toml(config))
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {folder}: {error.strerror}") from error
    return folder


def _remove_earlier(folder: Path, *, overwrite: bool) -> None:
    if not overwrite:
        raise ConfigError(f"{folder} exists: choose another --run.name, or pass --run.overwrite true to replace it")
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{folder} exists and is not a run: it is left alone; choose another --run.name")
    shutil.rmtree(folder)
