"""The report's tables in Markdown, and putting them between a document's markers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from launch.experiments.data import DataError, RunData
from launch.experiments.intervals import t_interval
from launch.experiments.plan import COMPARISONS, DEFAULT_OUT, LONG, Comparison, PlannedRun, Variant, planned_runs
from launch.experiments.results import FINAL_EVALUATIONS, Results, final_accuracy, long_windows, mean_accuracy
from shared.episodes import Task

MISSING = "missing"
_MARKED = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def all_tables(results: Results) -> dict[str, str]:
    """Every table by name: the plan, each comparison, the long runs, all runs."""
    compared = {c.name: comparison_table(c, results) for c in COMPARISONS if c.baseline is not None}
    return {"plan": plan_table(), **compared, LONG.name: long_table(results), "runs": runs_table(results)}


def fill(document: str, tables: Mapping[str, str]) -> str:
    """The document with what stands between `<!-- table:NAME -->` and `<!-- end -->` replaced.

    Raises DataError unless the document has a place for each table and none for another.
    """
    places = [match[2] for match in _MARKED.finditer(document)]
    if sorted(places) != sorted(tables):
        raise DataError(f"the document has places for the tables {sorted(places)}, but the tables are {sorted(tables)}")
    return _MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}\n{match[3]}", document)


def plan_table() -> str:
    """What is run: seeds, steps, trained rows of a batch, overrides."""
    head = ["comparison", "variant", "seeds", "steps", "proposer rows", "solver rows", "overrides"]
    return _table(head, [_plan_row(c, variant) for c in COMPARISONS for variant in c.variants])


def comparison_table(comparison: Comparison, results: Results) -> str:
    """Accuracies over seeds, and differences to the baseline over the seeds that both have."""
    baseline = comparison.baseline
    if baseline is None:
        raise ValueError(f"{comparison.name} has no baseline")
    others = [variant for variant in comparison.variants if variant != baseline]
    head = ["variant", "runs", "final", "mean", f"final − {baseline.name}", f"mean − {baseline.name}"]
    rows = [
        [
            variant.name,
            f"{len(results.of(variant))} of {len(variant.seeds)}",
            _spread([final_accuracy(data) for data in results.of(variant)]),
            _spread([mean_accuracy(data) for data in results.of(variant)]),
            *([""] * 2 if variant == baseline else _differences(variant, baseline, results)),
        ]
        for variant in [baseline, *others]
    ]
    return _table(head, rows)


def long_table(results: Results) -> str:
    """Each long run's best five evaluations against its last five."""
    head = ["run", "best five", "at steps", "last five", "last − best", "kept"]
    rows = []
    for run in _runs_of(LONG):
        data = results.runs.get((run.variant.name, run.seed))
        rows.append([run.name, *(_missing(head) if data is None else _long_cells(data))])
    return _table(head, rows)


def runs_table(results: Results) -> str:
    """Every planned run."""
    head = ["run", "commit", "wall, s", "episodes", "staleness", "before", "final", *Task]
    rows = []
    for run in planned_runs():
        data = results.runs.get((run.variant.name, run.seed))
        rows.append([run.name, *(_missing(head) if data is None else _run_cells(data))])
    return _table(head, rows)


def _plan_row(comparison: Comparison, variant: Variant) -> list[str]:
    config = PlannedRun(variant, variant.seeds[0]).config(DEFAULT_OUT)
    play = config.selfplay
    return [
        comparison.name,
        variant.name,
        ", ".join(map(str, variant.seeds)),
        str(variant.steps),
        str(len(Task) * play.proposals_per_task * play.train_proposer),
        str(len(Task) * (play.proposals_per_task + play.buffer_problems_per_task) * play.trained_attempts),
        "<br>".join(f"`{word}`" for word in variant.overrides),
    ]


def _long_cells(data: RunData) -> list[str]:
    windows = long_windows(data)
    return [
        f"{windows.best:.3f}",
        "{}–{}".format(*windows.best_steps),
        f"{windows.last:.3f}",
        f"{windows.last - windows.best:+.3f}",
        "yes" if windows.kept else "no",
    ]


def _run_cells(data: RunData) -> list[str]:
    staleness = [value for value in data.health.staleness if value is not None]
    final = data.evaluations[-FINAL_EVALUATIONS:]
    commit, changes = data.commit[:10], "+changes" if data.commit.endswith("+changes") else ""
    return [
        f"{commit}{changes}",
        f"{data.wall_s:.0f}",
        str(data.episodes),
        f"{fmean(staleness):.2f}" if staleness else "",
        f"{data.evaluations[0].mean:.3f}",
        f"{final_accuracy(data):.3f}",
        *(f"{fmean(point.accuracy[task] for point in final):.3f}" for task in Task),
    ]


def _differences(variant: Variant, baseline: Variant, results: Results) -> list[str]:
    pairs = results.pairs(variant, baseline)
    measures: list[Callable[[RunData], float]] = [final_accuracy, mean_accuracy]
    return [_difference([measure(data) - measure(other) for data, other in pairs]) for measure in measures]


def _difference(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    interval = t_interval(values)
    if interval.half_width is None:
        return f"{interval.mean:+.3f} (one pair)"
    return f"{interval.mean:+.3f} ± {interval.half_width:.3f} ({len(values)} pairs)"


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ({min(values):.3f}–{max(values):.3f})" if values else MISSING


def _runs_of(comparison: Comparison) -> list[PlannedRun]:
    return planned_runs(only=[variant.name for variant in comparison.variants])


def _missing(head: Sequence[str]) -> list[str]:
    return [MISSING] * (len(head) - 1)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
