"""The panel of a live display: a picture of a RunView for a width."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.display.run_view import RunView
from launch.display.trends import bar, sparkline
from launch.records import Record

LABEL_WIDTH = 11
LARGEST_TREND = 32
SMALL_TREND = 10
# Of a task's row: its name and, of four columns, the number and the gaps.
_TABLE_REST = LABEL_WIDTH + 4 * (2 + 5 + 1)
_PHASES = {
    "wait_s": "waits for rollout",
    "train_s": "trains",
    "sync_s": "sends weights",
    "evaluation_wait_s": "waits for evaluation",
    "sleep_s": "takes turns",
    "checkpoint_s": "saves",
}
_UNITS = ("", "k", "M", "G")


def run_panel(view: RunView, name: str, width: int, troubles: Sequence[str] = (), *, stopping: bool = False) -> Panel:
    """A run that has a step or an evaluation on record.

    width: cells, of the whole panel; troubles: what is wrong with processes now
    """
    inner = width - 4
    parts: list[RenderableType] = [
        _progress(view, inner, stopping),
        "",
        _tasks(view, inner),
        "",
        _facts(view, inner, troubles),
    ]
    return _framed(Group(*parts), name, width)


def start_panel(
    stages: Sequence[tuple[str, str, str]], waited_s: float, name: str, width: int, *, stopping: bool = False
) -> Panel:
    """A run that is starting. stages: (what, its state, a detail), in order; waited_s: since the launch"""
    columns = [max(len(stage[i]) for stage in stages) for i in range(2)]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, width=columns[0])
    table.add_column(style="bold", no_wrap=True, width=columns[1])
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis", width=max(1, width - 10 - sum(columns)))
    for stage in stages:
        table.add_row(*map(Text, stage))
    heading = Text(
        f"starting  {span(waited_s)}" + ("  stopping after the first step" if stopping else ""), style="bold"
    )
    return _framed(Group(heading, "", table), name, width)


def span(seconds: float) -> str:
    """A time, as in 0:12:05."""
    return str(datetime.timedelta(seconds=round(seconds)))


def _framed(content: RenderableType, name: str, width: int) -> Panel:
    return Panel(content, title=Text(name, style="bold"), title_align="left", border_style="dim", width=width)


def _progress(view: RunView, width: int, stopping: bool) -> Text:
    left = view.left_s()
    gone = view.last(lambda record: record["wall_s"])
    words = f"step {view.version} of {view.steps}"
    if gone is not None and left is not None:
        words += f"  {span(gone)} gone, about {span(left)} left"
    if stopping:
        words += "  stopping after this step"
    rest = width - len(words) - 2
    text = Text(words, style="bold")
    if rest >= SMALL_TREND and view.steps:
        text.append("  ")
        text.append(bar(view.version / view.steps, min(rest, 60)), style="green on grey23")
    return text


def _tasks(view: RunView, width: int) -> Table:
    trend = max(0, min(LARGEST_TREND, (width - _TABLE_REST) // 4))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, width=LABEL_WIDTH)
    for _ in range(4):
        table.add_column(no_wrap=True, width=trend + 6)
    heads = ("", "accuracy", "valid", "solver reward", "proposer")
    table.add_row(*(Text(head, style="dim") for head in heads))
    for task in view.tasks:

        def value(key: str, task: str = task) -> Any:
            return lambda record: record["tasks"][task][key]

        def reward(role: str, task: str = task) -> Any:
            return lambda record: record["cells"][f"{role}/{task}"]["reward"]

        table.add_row(
            Text(task),
            _number(view, value("accuracy"), trend, ".2f", 0.0, 1.0),
            _number(view, value("valid"), trend, ".2f", 0.0, 1.0),
            _number(view, reward("solver"), trend, "+.2f"),
            _number(view, reward("proposer"), trend, "+.2f"),
        )
    return table


def _number(
    view: RunView, number: Any, trend: int, form: str, low: float | None = None, high: float | None = None
) -> Text:
    text = Text(_form(view.last(number), form).rjust(5), style="bold")
    text.append(" " + sparkline(view.series(number), trend, low, high), style="not bold cyan")
    return text


def _facts(view: RunView, width: int, troubles: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, width=LABEL_WIDTH)
    table.add_column(overflow="fold", width=width - LABEL_WIDTH - 2)
    for label, text in (
        ("evaluation", _evaluation(view, width - LABEL_WIDTH - 2)),
        ("tokens/s", _throughput(view)),
        ("learner", _phases(view)),
        ("policy", _policy(view)),
        ("memory", _memory(view)),
        ("restarts", _restarts(view)),
        ("processes", Text("; ".join(troubles), style="yellow") if troubles else None),
    ):
        if text is not None:
            table.add_row(label, text)
    return table


def _evaluation(view: RunView, width: int) -> Text | None:
    if not view.evaluations:
        return None
    last = view.evaluations[-1]
    text = Text(f"{last['accuracy']:.3f}", style="bold")
    if len(view.evaluations) > 1:
        line = sparkline([record["accuracy"] for record in view.evaluations], SMALL_TREND, 0.0, 1.0)
        text.append(f" {line}", style="not bold cyan")
    text.append(f"  at step {last['version']}", style="not bold dim")
    if last["held_out_accuracy"] is not None:
        text.append(f"  held out {last['held_out_accuracy']:.3f}", style="not bold")
    tasks = _pairs({task: f"{result['accuracy']:.2f}" for task, result in sorted(last["tasks"].items())})
    fits = text.cell_len + 2 + tasks.cell_len <= width
    return text.append("  " if fits else "\n").append_text(tasks)


def _throughput(view: RunView) -> Text | None:
    if not view.records:
        return None
    rollout, learner = map(_quantity, (view.rollout_tokens_per_s(), view.learner_tokens_per_s()))
    text = _pairs({"rollout": rollout, "learner, while it trains": learner})
    return text.append(f"  {_form(view.step_s(), '.2f')} s a step", style="not bold dim")


def _phases(view: RunView) -> Text | None:
    """What the learner spends its time on; when it never waits for rollout, the workers wait for it."""
    shares = {phase: share for phase, share in view.phase_shares().items() if share >= 0.005}
    return _pairs({_PHASES.get(phase, phase.removesuffix("_s")): f"{share:.0%}" for phase, share in shares.items()})


def _policy(view: RunView) -> Text | None:
    if not view.records:
        return None

    def entropy(record: Record) -> Any:
        return record["learner"]["entropy"]

    text = _pairs({"entropy": _form(view.last(entropy), ".3f")})
    text.append(" " + sparkline(view.series(entropy), SMALL_TREND), style="not bold cyan")
    staleness = _form(view.last(lambda record: record["staleness_mean"]), ".2f")
    mismatch = _form(view.last(lambda record: record["learner"]["mismatch_mean"]), ".1e")
    return text.append("  ").append_text(_pairs({"staleness": staleness, "mismatch": mismatch}))


def _memory(view: RunView) -> Text | None:
    names = {
        "learner": "resident_bytes",
        "GPU, most in use": "gpu_allocated_bytes",
        "GPU, most reserved": "gpu_reserved_bytes",
    }

    def of(key: str) -> float | None:
        return view.last(lambda record: record["memory"][key])

    known = {name: of(key) for name, key in names.items()}
    return _pairs({name: f"{value / 2**30:.2f} GiB" for name, value in known.items() if value is not None}) or None


def _restarts(view: RunView) -> Text:
    if not view.restarts:
        return Text("none", style="dim")
    last = view.restarts[-1]
    return Text(f"{len(view.restarts)}, the last of {last.unit}: {last.reason}", style="yellow")


def _pairs(values: Mapping[str, str]) -> Text:
    text = Text()
    for name, value in values.items():
        text.append(f"{'  ' if text else ''}{name} ").append(value, style="bold")
    return text


def _form(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _quantity(value: float | None) -> str:
    """With three digits or so, as in 12.3k."""
    if value is None:
        return "–"
    unit = 0
    while abs(value) >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f}{_UNITS[unit]}" if abs(value) >= 100 else f"{value:.1f}{_UNITS[unit]}"
