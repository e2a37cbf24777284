"""The report as one HTML page that needs nothing from elsewhere. Whatever stands in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from launch.report.samples import SampledStep

_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, slots=True)
class FigureOnPage:
    """A picture, PNG, with its heading and what it says; key: the name of its file; wide: takes a whole row."""

    key: str
    title: str
    says: str
    png: bytes
    wide: bool = False

    @property
    def source(self) -> str:
        """A data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text; the first row names the columns, the first cell of each other row the row.

    numbers: whether the other cells are numbers, which stand under one another by their last digits
    """

    title: str
    rows: Sequence[Sequence[str]]
    numbers: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """What a report says, in the order of the page. notes: what is missing, and why."""

    title: str
    notes: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[FigureOnPage]
    samples: Sequence[SampledStep] = ()
    settings: Table | None = None


def render(page: Page) -> str:
    """The HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    context: Mapping[str, object] = {"page": page, "version": version("primezero")}
    return template.render(context)
