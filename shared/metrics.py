"""Run records: metrics.jsonl, one object a line; JSON files written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.disk import writing
from shared.errors import ConfigError


class MetricsLog:
    """Appends to a .jsonl file. Not-finite numbers become null, so that every line is valid JSON.

    Raises DiskError where the file takes no more; a line may then be torn, and is cut off by `cut_records`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            # A buffer would try again, when it is closed, what has failed before.
            self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object."""
        line = memoryview((json.dumps(_finite(record), allow_nan=False) + "\n").encode())
        with writing(self._path):
            while line:  # a disk that is nearly full takes a part, and refuses the rest
                line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cut_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Leave in a .jsonl file the objects up to the first that is torn or not to be kept, and return them."""
    kept, size = [], 0
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict) or not keep(record):
                break
            kept.append(record)
            size += len(line)
        os.truncate(path, size)
    return kept


def whole_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; none where there is no file. Lines that are torn or no object are passed over."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def check_writable(path: Path) -> None:
    """ConfigError unless a file can be written at `path`: for before the work whose result goes there."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"cannot write {path}: name a file in a folder that exists and is yours to write")


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Replace a JSON file by `record`."""
    replace_file(path, json.dumps(_finite(record), indent=2, allow_nan=False) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write beside and rename: a reader sees the old file or the new one."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
