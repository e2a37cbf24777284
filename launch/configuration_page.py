"""docs/configuration.md, made from the typed tree: `primezero config --markdown` prints it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from shared.config import Config

_HEAD = """\
# Configuration

Every key, as `primezero config --markdown` writes it. A key is set in a TOML file, as `[section]` and `key = value`, or
on the command line as `--section.key value`, which counts for more. What is not set has the default here; a run's own
`config.toml` has what it ran with. A key that does not exist, and a value that cannot be, is refused before anything
starts.
"""
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def configuration_page() -> str:
    """The page: a table for each section."""
    return "\n".join([_HEAD, *_sections(Config, Config(), ""), ""])


def _sections(section: type[BaseModel], defaults: BaseModel, prefix: str) -> Iterator[str]:
    parts = {name: getattr(defaults, name) for name in section.model_fields}
    properties = section.model_json_schema()["properties"]
    own = {name: value for name, value in parts.items() if not isinstance(value, BaseModel)}
    if own:
        yield f"## `[{prefix.removesuffix('.')}]`\n"
        yield f"{inspect.cleandoc(section.__doc__ or '')}\n"
        yield "| key | values | default | |\n|---|---|---|---|"
        for name, value in own.items():
            described = section.model_fields[name].description or ""
            yield f"| `{name}` | {_cell(_values(properties[name]))} | `{_spelled(value)}` | {_cell(described)} |"
        yield ""
    for name, value in parts.items():
        if isinstance(value, BaseModel):
            yield from _sections(type(value), value, f"{prefix}{name}.")


def _values(schema: Mapping[str, Any]) -> str:
    """What a key may be, in a few words."""
    if "anyOf" in schema:
        return ", ".join(_values(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return "a list"
    kind = {"null": "none", "boolean": "true, false", "integer": "integer", "number": "number", "string": "text"}
    bounds = [text.format(_number(schema[key])) for key, text in _BOUNDS.items() if key in schema]
    bounds += [f"a multiple of {_number(schema['multipleOf'])}"] if "multipleOf" in schema else []
    return " ".join([kind[schema["type"]], ", ".join(bounds)]).strip()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _spelled(value: object) -> str:
    """As TOML has it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str([list(each) if isinstance(each, tuple) else each for each in value]).replace("'", '"')
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
