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

_LISTS = """a list is written as in [0.9, 0.95] or ["tensorboard"]; in a shell, with ' around it"""


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
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8, as TOML is: save it as such ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    words = iter(overrides)
    for word in words:
        if not re.fullmatch(r"--[A-Za-z][\w.-]*(=.*)?", word, re.DOTALL):
            raise ConfigError(f"expected an override such as --learner.lr 2e-6, found {word!r}")
        key, separator, value = word[2:].partition("=")
        if not separator:
            following = next(words, None)
            if following is None or following.startswith("--"):
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
        raise ConfigError(f"{key}: {value!r} is no list: {_LISTS}") from error


def _reason(error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "extra_forbidden":
            meant = meant_key(key)
            return f"unknown key; do you mean {meant}?" if meant else "unknown key; `primezero config` lists all keys"
        case "model_type":
            return f"a section, which holds keys: [{key}] in TOML (found {error['input']!r})"
        case "tuple_type":
            return f"{_LISTS} (found {error['input']!r})"
        case "missing":
            return f"the list lacks a value there (found {error['input']!r})"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if isinstance(error["input"], dict) else f"{message} (found {error['input']!r})"


def meant_key(key: str) -> str | None:
    """What an unknown key was meant to be: the one elsewhere that has its last word, else the one that resembles it.

    Of a section's name alone, its first key; of what resembles one, that section.
    """
    known = list(known_keys())
    key = key.replace("-", "_").lower()
    section, _, last = key.rpartition(".")
    inside = {each.rpartition(".")[2]: each for each in known if each.startswith(f"{section or key}.")}
    if key in Config.model_fields:
        return next(iter(inside.values()))
    if elsewhere := [each for each in known if each.rpartition(".")[2] == last]:
        return elsewhere[0]
    if section and inside:
        return next((inside[word] for word in difflib.get_close_matches(last, inside, n=1)), None)
    return next(iter(difflib.get_close_matches(key, [*known, *Config.model_fields], n=1, cutoff=0.75)), None)
