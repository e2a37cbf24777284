"""The report's figures, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from launch.experiments.curves import Measure, draw_accuracy, draw_health
from launch.experiments.data import Series
from launch.experiments.plan import FULL, LONG, PROPOSER, SWITCHES, Comparison
from launch.experiments.results import LONG_TOLERANCE, Results, long_windows
from launch.plotting import STYLES, figure_style, name_axes

_ACCURACY = "greedy accuracy, mean of tasks"


def write_figures(results: Results, folder: Path) -> None:
    """proposer.svg, switches.svg, long.svg, and the health of each comparison's runs beside it."""
    figures = {
        "proposer": lambda: proposer_figure(results),
        "proposer-health": lambda: health_figure(PROPOSER, results),
        "switches": lambda: switches_figure(results),
        "switches-health": lambda: health_figure(SWITCHES, results),
        "long": lambda: long_figure(results),
        "long-health": lambda: health_figure(LONG, results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    # No date: the same data give the same bytes.
    with figure_style():
        for name, figure in figures.items():
            figure().savefig(folder / f"{name}.svg", metadata={"Date": None})


def proposer_figure(results: Results) -> Figure:
    """Accuracy of every variant of the comparison, in one plot."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for index, variant in enumerate(PROPOSER.variants):
        draw_accuracy(axes, results.of(variant), variant.name, index)
    name_axes(axes, _ACCURACY)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def switches_figure(results: Results) -> Figure:
    """A plot for each variant, with the demo's runs of the same seeds."""
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (index, variant) in zip(grid.flat, enumerate(SWITCHES.variants, start=1), strict=True):
        if pairs := results.pairs(variant, FULL):
            draw_accuracy(axes, [baseline for _, baseline in pairs], f"{FULL.name}, same seeds", 0)
        draw_accuracy(axes, results.of(variant), variant.name, index)
        name_axes(axes, _ACCURACY)
        axes.label_outer()
        axes.legend(loc="lower right")
    return figure


def long_figure(results: Results) -> Figure:
    """Each long run, and the level below which its end would count as a collapse."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for variant in LONG.variants:
        for index, seed in enumerate(variant.seeds):
            data = results.runs.get((variant.name, seed))
            draw_accuracy(axes, [] if data is None else [data], f"seed {seed}", index)
            if data is not None:
                axes.axhline(
                    long_windows(data).best - LONG_TOLERANCE,
                    color=STYLES[index]["color"],
                    linestyle=STYLES[index]["linestyle"],
                    linewidth=0.6,
                    label=f"seed {seed}: best five − {LONG_TOLERANCE}",
                )
    name_axes(axes, _ACCURACY)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def health_figure(comparison: Comparison, results: Results) -> Figure:
    """How proposer and solver fare while they train: means over ten steps, tasks and seeds."""
    panels: dict[str, Measure] = {
        "valid proposals, share": lambda health: _over_tasks(health.valid.values(), np.mean),
        "distinct proposals a batch": lambda health: _over_tasks(health.distinct.values(), np.sum),
        "proposer's reward, mean of tasks": lambda health: _over_tasks(health.proposer_reward.values(), np.mean),
        "sampled solve rate, mean of tasks": lambda health: _over_tasks(health.solver_accuracy.values(), np.mean),
        "entropy, nats a token": lambda health: health.entropy,
        "|sampler − learner|, nats a token": lambda health: health.mismatch,
    }
    shown = list(comparison.variants)
    if comparison.baseline is not None and comparison.baseline not in shown:
        shown.insert(0, comparison.baseline)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    for axes, (label, measure) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        for index, variant in enumerate(shown):
            draw_health(axes, results.of(variant), variant.name, measure, index)
        name_axes(axes, label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(shown))
    return figure


def _over_tasks(series: Iterable[Series], combine: Callable[..., npt.NDArray[np.float64]]) -> Series:
    values: Series = combine(np.array(list(series), dtype=float), axis=0).tolist()
    return values
