"""From runs' records to a page: of one run by task, of several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from launch.printable import one_line
from launch.report.figures import plot_png, smoothing_window, time_png
from launch.report.measures import PLOTS
from launch.report.page import FigureOnPage, Page, Table
from launch.report.samples import samples_or_reason
from launch.report.tables import accuracies, differences, facts, settings, time_shares
from launch.run_records import RunRecords


def build(runs: Sequence[RunRecords]) -> Page:
    """The page of one run, or one that compares several."""
    return _single(runs[0]) if len(runs) == 1 else _comparison(runs)


def _single(run: RunRecords) -> Page:
    figures = [
        FigureOnPage(plot.key, plot.title, plot.says, plot_png(plot, curves))
        for plot in PLOTS
        if (curves := plot.told_apart(run))
    ]
    if (png := time_png(run.steps)) is not None:
        says = "The learner's time in each step: while it waits for a batch the engines work, and the other way round."
        figures.append(FigureOnPage("time", "Where the time went", says, png, wide=True))
    samples, no_samples = samples_or_reason(run)
    notes = [*_missing(run), *([f"There are no sample episodes: {one_line(no_samples)}."] if no_samples else [])]
    return Page(
        title=f"Run {one_line(run.name)}",
        notes=[*notes, *_smoothing([run])],
        tables=_tables(facts([run]), accuracies([run]), time_shares(run)),
        figures=figures,
        samples=samples,
        settings=settings(run),
    )


def _comparison(runs: Sequence[RunRecords]) -> Page:
    figures = []
    for plot in PLOTS:
        if curves := [curve for run in runs if (curve := plot.combined(run)) is not None]:
            title = plot.title if len(plot.lines) == 1 else f"{plot.title}: {plot.what_is_compared}"
            figures.append(FigureOnPage(plot.key, title, plot.says, plot_png(plot, curves)))
    notes = [f"{one_line(run.name)}: {note}" for run in runs for note in _missing(run)]
    return Page(
        title=" and ".join(one_line(run.name) for run in runs) if len(runs) == 2 else f"{len(runs)} runs compared",
        notes=[*notes, *_smoothing(runs)],
        tables=_tables(facts(runs), accuracies(runs), differences(runs)),
        figures=figures,
    )


def _tables(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]


def _missing(run: RunRecords) -> list[str]:
    missing = {"training step": run.steps, "evaluation": run.evaluations}
    return [f"No {what} is on record." for what, records in missing.items() if not records]


def _smoothing(runs: Sequence[RunRecords]) -> list[str]:
    windows = {smoothing_window(len(run.steps)) for run in runs} - {1}
    if not windows:
        return []
    over = " or ".join(map(str, sorted(windows)))
    return [f"Curves of single batches are thin; over them lies the mean of the last {over} batches."]
