"""Reading and writing the configuration: TOML, then `--section.key value` overrides.

Precedence: command line, then the TOML file, then the defaults in `shared/config.py`. An unknown key or an
impossible value is a ConfigError that names the key, before anything starts. Nothing is read from the
environment.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from shared.config import Config
from shared.errors import ConfigError


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read the tree: defaults, then the TOML file, then `--section.key value` pairs.

    Raises ConfigError, naming the key, when a key is unknown or a value impossible.
    """
    tree = {} if path is None else _read_toml(path)
    for key, value in _pairs(overrides):
        _put(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'configuration'}: {_reason(e)}" for e in error.errors()]
        raise ConfigError("the configuration is not usable:\n" + "\n".join(lines)) from error


def dump_toml(config: Config) -> str:
    """The resolved tree as TOML; `load_config` reads it back to an equal tree."""

    def spelled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spelled(item) for key, item in value.items()}
        return "none" if value is None else value

    return tomli_w.dumps(spelled(config.model_dump(mode="json")))


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Every dotted key with its description."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys[prefix + name] = field.description or ""
    return keys


def values_by_key(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its resolved value."""
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        values |= values_by_key(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {prefix + name: value}
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    words = iter(overrides)
    for word in words:
        if not re.fullmatch(r"--[a-z][\w.]*(=.*)?", word, re.DOTALL):
            raise ConfigError(f"expected an override such as --learner.lr 2e-6, found {word!r}")
        key, separator, value = word[2:].partition("=")
        if not separator:
            following = next(words, None)
            if following is None:
                raise ConfigError(f"the override --{key} has no value")
            value = following
        pairs.append((key, value))
    return pairs


def _put(tree: dict[str, Any], key: str, value: str) -> None:
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {section} is a value, not a section")
    node[last] = _read_list(key, value) if value.startswith("[") else value


def _read_list(key: str, value: str) -> object:
    try:
        return tomllib.loads(f"list = {value}")["list"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{key}: {value!r} is not a list such as [0.9, 0.95]") from error


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key" + _meant(".".join(map(str, error["loc"])))
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if isinstance(error["input"], dict) else f"{message} (found {error['input']!r})"


def _meant(key: str) -> str:
    """The known key that an unknown one resembles most, or that has its last word, in words."""
    known = [*known_keys(), *Config.model_fields]
    last = key.rpartition(".")[2]
    elsewhere = [other for other in known if other.rpartition(".")[2] == last]
    resembling = elsewhere or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f"; do you mean {resembling[0]}?" if resembling else ""
