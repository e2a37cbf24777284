"""A report's figures, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from launch.plotting import MARKER_SIZE, figure_style, name_axes, plain, sparse, style
from launch.report.measures import Curve, Plot
from launch.run_records import Record, number

_SIZE = (5.2, 3.1)  # without a legend
_DPI = 130
_BARS = 60
_PHASES = {
    "wait_s": "waiting for the batch",
    "train_s": "update",
    "evaluation_wait_s": "waiting for an evaluation",
    "sync_s": "weight sync",
    "checkpoint_s": "checkpoint",
    "sleep_s": "putting engines to sleep",
}
_GREYS = ("#dcdcdc", "#4d4d4d", "#ffffff", "#9a9a9a", "#ffffff", "#c4c4c4")
_HATCHES = ("", "", "/////", "", "xxx", "..")
_TICK_STEPS = (1, 2, 5, 10)
_LONGEST_LABEL = 44


def plot_png(plot: Plot, curves: Sequence[Curve]) -> bytes:
    """The curves of one plot; at least one of them is not empty."""
    with figure_style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for index, curve in enumerate(curves):
            _draw(axes, curve, index, smooth=plot.of == "steps")
        name_axes(axes, plot.unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=_TICK_STEPS))
        if plot.scale == "log" and any(value and value > 0 for curve in curves for value in curve.values):
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", useOffset=False)
        if plot.limits is not None:
            axes.set_ylim(plot.limits)
        if len(curves) > 1 or len(plot.lines) > 1:
            _legend(figure, len(curves))
        return _png(figure)


def time_png(steps: Sequence[Record]) -> bytes | None:
    """Where the time of the steps went: a bar for each, or for as many as there is room for. None where unknown."""
    timed = [record for record in steps if isinstance(record.get("phases"), Mapping) and record["phases"]]
    if not timed:
        return None
    groups = np.array_split(np.arange(len(timed)), min(_BARS, len(timed)))
    middles, widths = bars([[number(timed[i], "step") or 0.0 for i in part] for part in groups])
    bottom = np.zeros(len(groups))
    with figure_style():
        figure = Figure(figsize=(2 * _SIZE[0], _SIZE[1]), layout="constrained")
        axes = figure.subplots()
        seconds_by_phase = phase_seconds(timed)
        for index, (label, seconds) in enumerate(seconds_by_phase.items()):
            heights = np.array([fmean(seconds[i] for i in part) for part in groups])
            look = index % len(_GREYS)
            axes.bar(
                middles,
                heights,
                widths,
                bottom,
                label=label,
                color=_GREYS[look],
                hatch=_HATCHES[look],
                edgecolor="black",
                linewidth=0.4,
            )
            bottom += heights
        name_axes(axes, "seconds a step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=_TICK_STEPS))
        axes.set_axisbelow(True)
        axes.margins(x=0.01)
        axes.set_ylim(0, 1.08 * bottom.max())
        _legend(figure, len(seconds_by_phase))
        return _png(figure)


def bars(groups: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Where the bar of each group of consecutive steps has its middle, and how wide it is: beside its neighbours."""
    middles = [(group[0] + group[-1]) / 2 for group in groups]
    widths = [0.9 * (group[-1] - group[0] + 1) for group in groups]
    return middles, widths


def phase_seconds(steps: Sequence[Record]) -> dict[str, list[float]]:
    """Phase, in words → its seconds in each step; the longest in all comes first."""
    names = {name for record in steps for name in record.get("phases") or {}}
    seconds = {
        _PHASES.get(name, name): [number(record, "phases", name) or 0.0 for record in steps] for name in sorted(names)
    }
    return dict(sorted(seconds.items(), key=lambda each: -sum(each[1])))


def _draw(axes: Axes, curve: Curve, index: int, *, smooth: bool) -> None:
    """Each value thin, and the running mean over it; gaps where nothing was measured."""
    look = style(index)
    values = np.array([np.nan if value is None else value for value in curve.values])
    window = smoothing_window(len(values)) if smooth else 1
    if window > 1:
        axes.plot(curve.steps, values, color=look["color"], linewidth=0.5, alpha=0.35)
    means, every = running_mean(values, window), sparse(curve.steps)
    axes.plot(curve.steps, means, label=plain(_shortened(curve.label)), markersize=MARKER_SIZE, markevery=every, **look)


def _shortened(name: str) -> str:
    """With its middle left out, where it would not fit into a legend."""
    half = _LONGEST_LABEL // 2
    return name if len(name) <= _LONGEST_LABEL else f"{name[:half]}…{name[1 - half :]}"


def _legend(figure: Figure, entries: int) -> None:
    """Above the axes, which it takes nothing from: in as few rows as there is room for, all about equally full."""
    for rows in range(1, entries + 1):
        columns = math.ceil(entries / rows)
        legend = figure.legend(
            loc="outside upper center", ncols=columns, frameon=False, columnspacing=1.4, handlelength=2.6
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            width, height = figure.get_size_inches()
            figure.set_size_inches(width, height + legend.get_window_extent().height / figure.dpi)
            return
        legend.remove()


def smoothing_window(steps: int) -> int:
    """Over how many steps a noisy line is averaged."""
    return max(1, steps // 25)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Of each value and those before it, `window` in all, without those that are NaN: NaN where all of them are."""
    known = ~np.isnan(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[window:], counts[window:] = sums[window:] - sums[:-window], counts[window:] - counts[:-window]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=(counts > 0) & known)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the library's version: the same data give the same bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
