"""Lines over training steps; told apart by line style and marker, so that they can be read in grey."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from launch.experiments.data import Health, RunData, Series

Measure = Callable[[Health], Series]
# Colours of Okabe and Ito: apart for colour-blind eyes, and of different lightness.
STYLES = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    {"color": "#009E73", "linestyle": ":", "marker": "D"},
    {"color": "#CC79A7", "linestyle": (0, (6, 1, 1, 1, 1, 1)), "marker": "v"},
)
_MARKER = 3.5


def draw_accuracy(axes: Axes, runs: Sequence[RunData], label: str, style: int) -> None:
    """The mean over seeds in a band from the lowest to the highest; a name without a line where nothing is there."""
    if not runs:
        axes.plot([], [], label=f"{label} (missing)", markersize=_MARKER, **STYLES[style])
        return
    steps = [point.step for point in runs[0].evaluations]
    curves = np.array([[point.mean for point in data.evaluations] for data in runs])
    seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
    axes.plot(steps, curves.mean(0), label=label + seeds, markersize=_MARKER, markevery=_sparse(steps), **STYLES[style])
    axes.fill_between(steps, curves.min(0), curves.max(0), color=STYLES[style]["color"], alpha=0.12, linewidth=0)


def draw_health(axes: Axes, runs: Sequence[RunData], label: str, measure: Measure, style: int) -> None:
    """The mean over seeds; a name without a line where nothing is there."""
    if not runs:
        axes.plot([], [], label=f"{label} (missing)", markersize=_MARKER, **STYLES[style])
        return
    steps = runs[0].health.step
    mean = np.array([measure(data.health) for data in runs], dtype=float).mean(0)
    axes.plot(steps, mean, label=label, markersize=_MARKER, markevery=_sparse(steps), **STYLES[style])


def _sparse(points: Sequence[int]) -> int:
    """Every how many points a marker is drawn: about a dozen on a line."""
    return max(1, len(points) // 12)


def name_axes(axes: Axes, label: str) -> None:
    """Steps to the right, `label` upwards."""
    axes.set_xlabel("training steps (batches)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3, linewidth=0.5)
