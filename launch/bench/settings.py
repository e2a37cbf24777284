"""A benchmark's sizes are its arguments: a dataclass whose fields explain themselves."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, explained: str) -> Any:
    """A field of such a dataclass: its default, and what `--help` says of it."""
    return field(default=default, metadata={"help": explained})
