"""What a run has recorded, read without changing it: a run may still be going, be old, or have ended in the middle."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.run_folder import CONFIG_FILE, EVALUATIONS_FILE, METRICS_FILE, RESTARTS_FILE, SUMMARY_FILE
from shared.config import Config
from shared.config_file import dump_toml, known_keys, load_config
from shared.errors import ConfigError
from shared.metrics import whole_records

MODEL_FOLDER = "model"
_TOKENIZER_FILE = "tokenizer.json"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunRecords:
    """The records of one run.

    steps, evaluations, restarts: objects of metrics.jsonl, evaluations.jsonl and restarts.jsonl, in their order
    summary: of a run that has ended well, else None
    settings: the configuration by dotted key, as it was written: keys may be missing or unknown to this version
    """

    folder: Path
    steps: list[Record]
    evaluations: list[Record]
    restarts: list[Record]
    summary: Record | None
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name


def read_run(folder: Path) -> RunRecords:
    """Raises ConfigError where there is no run."""
    check_run_folder(folder)
    return RunRecords(
        folder=folder,
        steps=read_objects(folder / METRICS_FILE),
        evaluations=read_objects(folder / EVALUATIONS_FILE),
        restarts=read_objects(folder / RESTARTS_FILE),
        summary=_summary(folder / SUMMARY_FILE),
        settings=_settings(folder / CONFIG_FILE),
    )


def check_run_folder(folder: Path) -> None:
    """Raise ConfigError, saying what to name instead, unless a run has left its configuration there."""
    if not (folder / CONFIG_FILE).is_file():
        what = "does not exist" if not folder.exists() else f"is no run: it has no {CONFIG_FILE}"
        raise ConfigError(f"{folder} {what}; name the folder of a run, such as runs/cpu_demo")


def run_config(folder: Path) -> Config:
    """The configuration that the run was made with. Raises ConfigError where this version cannot read all of it."""
    try:
        return load_config(folder / CONFIG_FILE)
    except ConfigError as error:
        raise ConfigError(f"the run in {folder} was made with another version of primezero: {error}") from error


def known_config(run: RunRecords) -> Config:
    """The run's configuration, for looking back at it: without keys that this version does not know any more.

    Raises ConfigError for values that it cannot take.
    """
    known = known_keys()
    overrides = [f"--{key}={_spelled(value)}" for key, value in run.settings.items() if key in known]
    return load_config(None, overrides)


def read_objects(path: Path) -> list[Record]:
    """The objects of a .jsonl file; none where there is no file. Lines that are torn or no object are passed over.

    Raises ConfigError when the file cannot be read.
    """
    try:
        return whole_records(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def unreadable_lines(path: Path) -> int:
    """Lines of a .jsonl file that are written to their end and are no objects: it has been damaged."""
    ended = path.read_bytes().count(b"\n") if path.exists() else 0
    return max(0, ended - len(whole_records(path)))


def tokenizer_folder(folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """A model folder with the run's tokenizer: the trained model, else the one it began with; None if both are gone."""
    places = [folder / MODEL_FOLDER, Path(str(settings.get("model.path", "")))]
    return next((place for place in places if (place / _TOKENIZER_FILE).is_file()), None)


def number(record: Mapping[str, Any], *path: str) -> float | None:
    """What is recorded under these keys, one inside the other; None where that is nothing, or no number."""
    value: Any = record
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def default_settings() -> dict[str, Any]:
    """Every dotted key with its default, as a run's configuration would have it."""
    return dict(_flat(tomllib.loads(dump_toml(Config()))))


def _spelled(value: Any) -> str:
    """A value as an override spells it: lists, which may hold lists, numbers and booleans are spelled as in JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _summary(path: Path) -> Record | None:
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def _settings(path: Path) -> dict[str, Any]:
    try:
        return dict(_flat(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not the configuration of a run: {error}") from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
