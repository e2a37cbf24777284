"""What a live display tells of a run beside its tasks: a labelled line or two for each subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from launch.display.run_view import RunView
from launch.display.trends import sparkline
from launch.records import Record

TREND = 10
ANY_WIDTH = 2**31
_PHASES = {
    "wait_s": "waits for rollout",
    "train_s": "trains",
    "sync_s": "sends weights",
    "evaluation_wait_s": "waits for evaluation",
    "sleep_s": "takes turns",
    "checkpoint_s": "saves",
}
_SIDES = ("learner", "rollout")
_UNITS = ("", "k", "M", "G")


def rows(view: RunView, width: int, memory: Mapping[str, int]) -> list[tuple[str, Text]]:
    """Label and text of what is known, the most telling first. width: of a text; memory: resident bytes by process"""
    texts = {
        "evaluation": _evaluation(view, width),
        "tokens/s": _throughput(view),
        "learner": _phases(view, width),
        "policy": _policy(view),
        "memory": _memory(view, memory, width),
        "restarts": _restarts(view),
    }
    return [(label, text) for label, text in texts.items() if text]


def form(value: float | None, spelled: str) -> str:
    """A number as `format` spells it; a dash where there is none."""
    return "–" if value is None else format(value, spelled)


def _evaluation(view: RunView, width: int) -> Text | None:
    if not view.evaluations:
        return None
    last = view.evaluations[-1]
    text = Text(f"{last['accuracy']:.3f}", style="bold")
    if len(view.evaluations) > 1:
        line = sparkline([record["accuracy"] for record in view.evaluations], TREND, 0.0, 1.0)
        text.append(f" {line}", style="not bold cyan")
    text.append(f"  at step {last['version']}", style="not bold dim")
    if last["held_out_accuracy"] is not None:
        text.append(f"  held out {last['held_out_accuracy']:.3f}", style="not bold")
    tasks = _pairs({task: f"{result['accuracy']:.2f}" for task, result in last["tasks"].items()}, width)
    fits = text.cell_len + 2 + tasks.cell_len <= width
    return text.append("  " if fits else "\n").append_text(tasks)


def _throughput(view: RunView) -> Text | None:
    if not view.records:
        return None
    rollout, learner = map(_quantity, (view.rollout_tokens_per_s(), view.learner_tokens_per_s()))
    text = _pairs({"rollout": rollout, "learner, while it trains": learner})
    return text.append(f"  {form(view.step_s(), '.2f')} s a step", style="not bold dim")


def _phases(view: RunView, width: int) -> Text:
    """What the learner spends its time on; when it never waits for rollout, the workers wait for it."""
    shares = {phase: share for phase, share in view.phase_shares().items() if share >= 0.005}
    names = {phase: _PHASES.get(phase, phase.removesuffix("_s")) for phase in shares}
    return _pairs({names[phase]: f"{share:.0%}" for phase, share in shares.items()}, width)


def _policy(view: RunView) -> Text | None:
    if not view.records:
        return None

    def entropy(record: Record) -> Any:
        return record["learner"]["entropy"]

    text = _pairs({"entropy": form(view.last(entropy), ".3f")})
    text.append(" " + sparkline(view.series(entropy), TREND), style="not bold cyan")
    staleness = form(view.last(lambda record: record["staleness_mean"]), ".2f")
    mismatch = form(view.last(lambda record: record["learner"]["mismatch_mean"]), ".1e")
    return text.append("  ").append_text(_pairs({"staleness": staleness, "mismatch": mismatch}))


def _memory(view: RunView, resident: Mapping[str, int], width: int) -> Text:
    """Of each side's processes together; of the GPU, what the first learner rank has used at most."""
    sides = {
        side: sum(taken)
        for side in _SIDES
        if any(taken := [each for name, each in resident.items() if name.startswith(side)])
    }
    gpu = {
        "GPU, most in use": view.last(lambda record: record["memory"]["gpu_allocated_bytes"]),
        "most reserved": view.last(lambda record: record["memory"]["gpu_reserved_bytes"]),
    }
    known = {name: f"{value / 2**30:.2f} GiB" for name, value in (sides | gpu).items() if value is not None}
    return _pairs(known, width)


def _restarts(view: RunView) -> Text:
    if not view.restarts:
        return Text("none", style="dim")
    last = view.restarts[-1]
    return Text(f"{len(view.restarts)}, the last of {last.unit}: {last.reason}", style="yellow")


def _pairs(values: Mapping[str, str], width: int = ANY_WIDTH) -> Text:
    """Names with their values, as many on a line of `width` as fit whole."""
    text, used = Text(), 0
    for name, value in values.items():
        taken = len(name) + 1 + len(value)
        fits = used + 2 + taken <= width
        text.append(("  " if fits else "\n") if used else "").append(f"{name} ").append(value, style="bold")
        used = used + 2 * bool(used) + taken if fits else taken
    return text


def _quantity(value: float | None) -> str:
    """With three digits or so, as in 12.3k."""
    if value is None:
        return "–"
    unit = 0
    while abs(value) >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f}{_UNITS[unit]}" if abs(value) >= 100 else f"{value:.1f}{_UNITS[unit]}"
