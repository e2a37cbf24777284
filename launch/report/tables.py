"""The numbers of a report: what runs came to, and how their configurations differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.printable import one_line
from launch.report.figures import phase_seconds
from launch.report.page import Table
from launch.run_records import Record, RunRecords, default_settings, number
from shared.episodes import Task

MISSING = "–"
# What a run is called and where it lies is no difference between two.
_OWN = {"run.name", "run.folder", "run.overwrite"}


def facts(runs: Sequence[RunRecords]) -> Table:
    """What each run was and did."""
    columns = [_facts(run) for run in runs]
    names = list(columns[0])
    rows = [[name, *(column[name] for column in columns)] for name in names]
    return Table("Run" if len(runs) == 1 else "Runs", [["", *(one_line(run.name) for run in runs)], *rows])


def accuracies(runs: Sequence[RunRecords]) -> Table | None:
    """Greedy accuracy of the first evaluation → of the last; None where there is none at all."""
    measures: dict[str, tuple[str, ...]] = {str(task): ("tasks", task, "accuracy") for task in Task}
    measures |= {"mean of tasks": ("accuracy",), "held out, mean": ("held_out_accuracy",)}
    rows = []
    for label, path in measures.items():
        cells = [_first_to_last(run, path, "{:.3f}") for run in runs]
        if any(cell != MISSING for cell in cells):
            rows.append([label, *cells])
    if not rows:
        return None
    head = ["first → last evaluation", *(one_line(run.name) for run in runs)]
    return Table(
        "Greedy accuracy", [head, *rows, ["at step", *(_first_to_last(r, ("version",), "{:.0f}") for r in runs)]]
    )


def time_shares(run: RunRecords) -> Table | None:
    """What the steps' time went to; None where that is not on record."""
    seconds = {phase: sum(each) for phase, each in phase_seconds(run.steps).items()}
    if not (total := sum(seconds.values())):
        return None
    rows = [[phase, f"{part:.1f}", f"{part / total:.0%}"] for phase, part in seconds.items()]
    return Table(
        "Where the time went",
        [["the learner's", "seconds", "share"], *rows, ["all steps", f"{total:.1f}", "100%"]],
        numbers=True,
    )


def settings(run: RunRecords) -> Table:
    """The whole configuration, and what it would have been by default where that is something else."""
    default = default_settings()
    rows = [
        [key, _spelled(value), "" if default.get(key, value) == value else _spelled(default[key])]
        for key, value in run.settings.items()
    ]
    return Table("Configuration", [["key", "value", "default, where that differs"], *rows])


def differences(runs: Sequence[RunRecords]) -> Table:
    """The keys that the runs' configurations do not agree on."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in _OWN)
    rows = [[key, *(_spelled(run.settings.get(key, MISSING)) for run in runs)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return Table("What differs in the configuration", [["key", *(one_line(run.name) for run in runs)], *differing])


def _facts(run: RunRecords) -> dict[str, str]:
    steps, summary = run.steps, run.summary or {}
    wall_s = number(summary, "wall_s") or (number(steps[-1], "wall_s") if steps else None)
    model = run.settings.get("model.path")
    return {
        "steps": f"{len(steps)} of {run.settings.get('run.steps', '?')}",
        "ended": "yes" if run.summary else "no, or not yet",
        "wall time": MISSING if wall_s is None else f"{wall_s:.0f} s",
        "episodes": _total(steps, "episodes", "untrained_episodes"),
        "tokens generated": _total(steps, "response_tokens", "untrained_tokens"),
        "restarts": str(len(run.restarts)),
        "seed": _spelled(run.settings.get("run.seed", MISSING)),
        "model": one_line(str(model).rsplit("/", 1)[-1]) if model else MISSING,
        "primes": "{}..{}".format(*(run.settings.get(f"environment.{end}_prime", "?") for end in ("min", "max"))),
        "learning rate": _spelled(run.settings.get("learner.lr", MISSING)),
    }


def _total(steps: Sequence[Record], *keys: str) -> str:
    """The sum over all steps, of what is on record."""
    return f"{sum(number(record, key) or 0 for record in steps for key in keys):,.0f}" if steps else MISSING


def _first_to_last(run: RunRecords, path: Sequence[str], form: str) -> str:
    known = [value for record in run.evaluations if (value := number(record, *path)) is not None]
    return " → ".join(form.format(value) for value in (known[0], known[-1])) if known else MISSING


def _spelled(value: Any) -> str:
    return one_line(str(value))
