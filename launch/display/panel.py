"""The panel of a live display while a run goes on: a picture of a RunView for a width."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.display.facts import form, rows
from launch.display.run_view import RunView
from launch.display.trends import bar, sparkline
from launch.records import Record

Phase = Literal["runs", "stops", "ended"]

LABEL_WIDTH = 10
GAP = 2
LARGEST_BAR = 60
SMALLEST_BAR = 10
LARGEST_TREND = 32
SMALLEST_TREND = 4
NUMBER_WIDTH = 5
_HEADS = ("accuracy", "valid", "solver reward", "proposer reward")
# Where there is no room for trends.
_SHORT_HEADS = ("solved", "valid", "solver", "proposer")
_ALL_SHORT = LABEL_WIDTH + sum(GAP + max(NUMBER_WIDTH, len(head)) for head in _SHORT_HEADS)


def run_panel(
    view: RunView,
    name: str,
    width: int,
    *,
    memory: Mapping[str, int] | None = None,
    troubles: Sequence[str] = (),
    phase: Phase = "runs",
    left_out: int = 0,
) -> Panel:
    """A run that has a step or an evaluation on record.

    width: cells, of the whole panel; memory: resident bytes by process; troubles: what is wrong with processes now
    phase: stops: after the step that is under way; left_out: how much to do without, for a terminal that is not high:
    from 1 on empty lines, then a fact more each time
    """
    inner = width - 4
    facts = rows(view, inner - LABEL_WIDTH - GAP, memory or {})
    facts = facts[: len(facts) - max(0, left_out - 1)] if left_out < len(facts) + 1 else []
    if troubles and phase != "ended":
        facts.append(("processes", Text("; ".join(troubles), style="yellow")))
    between: list[RenderableType] = [] if left_out else [""]
    parts = [_progress(view, inner, phase), *between, _tasks(view, inner), *between, _labelled(facts, inner)]
    return framed(Group(*parts), name, width)


def framed(content: RenderableType, name: str, width: int) -> Panel:
    """Content in the display's frame."""
    return Panel(content, title=Text(name, style="bold"), title_align="left", border_style="dim", width=width)


def span(seconds: float) -> str:
    """A time, as in 0:12:05."""
    return str(datetime.timedelta(seconds=round(seconds)))


def _progress(view: RunView, width: int, phase: Phase) -> Text:
    """Where the run stands, in as many words as there is room for, and a bar of it."""
    done = f"step {view.version} of {view.steps}"
    gone, left = view.last(lambda record: record["wall_s"]), view.left_s()
    if phase == "ended":
        words = [f"{done}, ended" + ("" if gone is None else f" after {span(gone)}")]
    elif phase == "stops":
        words = [f"{done}  stopping after this step", f"{done}  stopping"]
    elif gone is None or left is None:
        words = [f"{done}  the first batch is under way", done]
    elif view.version >= view.steps:
        words = [f"{done}  {span(gone)} gone, finishing", f"{done}  finishing"]
    else:
        words = [f"{done}  {span(gone)} gone, about {span(left)} left", f"{done}  {span(left)} left", done]
    text = Text(next((line for line in words if len(line) <= width), words[-1]), style="bold")
    if (rest := width - len(text) - GAP) >= SMALLEST_BAR and view.steps:
        heavy, light = bar(view.version / view.steps, min(rest, LARGEST_BAR))
        text.append(" " * GAP).append(heavy, style="not bold green").append(light, style="not bold dim")
    return text


def _tasks(view: RunView, width: int) -> Table:
    trend = min(LARGEST_TREND, (width - LABEL_WIDTH) // len(_HEADS) - GAP - NUMBER_WIDTH - 1)
    if trend < SMALLEST_TREND:
        trend, heads = 0, _SHORT_HEADS if width >= _ALL_SHORT else _SHORT_HEADS[:2]
        widths = [max(NUMBER_WIDTH, len(head)) for head in heads]
    else:
        heads = _HEADS
        widths = [max(NUMBER_WIDTH + 1 + trend, len(head)) for head in heads]
    table = Table.grid(padding=(0, GAP, 0, 0))
    for column in (LABEL_WIDTH, *widths):
        table.add_column(no_wrap=True, width=column)
    table.add_row("", *(Text(head, style="dim") for head in heads))
    for task in view.tasks:

        def value(key: str, task: str = task) -> Any:
            return lambda record: record["tasks"][task][key]

        def reward(role: str, task: str = task) -> Any:
            return lambda record: record["cells"][f"{role}/{task}"]["reward"]

        cells = (
            _number(view, value("accuracy"), trend, ".2f", 0.0, 1.0),
            _number(view, value("valid"), trend, ".2f", 0.0, 1.0),
            _number(view, reward("solver"), trend, "+.2f"),
            _number(view, reward("proposer"), trend, "+.2f"),
        )
        table.add_row(Text(task), *cells[: len(heads)])
    return table


def _number(view: RunView, number: Callable[[Record], Any], trend: int, spelled: str, *limits: float) -> Text:
    text = Text(form(view.last(number), spelled).ljust(NUMBER_WIDTH), style="bold")
    return text.append(f" {sparkline(view.series(number), trend, *limits)}" if trend else "", style="not bold cyan")


def _labelled(facts: Sequence[tuple[str, Text]], width: int) -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_column(style="dim", no_wrap=True, width=LABEL_WIDTH)
    table.add_column(overflow="fold", width=width - LABEL_WIDTH - GAP)
    for label, text in facts:
        table.add_row(label, text)
    return table
