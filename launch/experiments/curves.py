"""Lines over training steps: means over the seeds of a variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from launch.experiments.data import Health, RunData, Series
from launch.plotting import MARKER_SIZE, STYLES, sparse

Measure = Callable[[Health], Series]


def draw_accuracy(axes: Axes, runs: Sequence[RunData], label: str, style: int) -> None:
    """The mean over seeds in a band from the lowest to the highest; a name without a line where nothing is there."""
    if not runs:
        axes.plot([], [], label=f"{label} (missing)", markersize=MARKER_SIZE, **STYLES[style])
        return
    steps = [point.step for point in runs[0].evaluations]
    curves = np.array([[point.mean for point in data.evaluations] for data in runs])
    seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
    axes.plot(
        steps, curves.mean(0), label=label + seeds, markersize=MARKER_SIZE, markevery=sparse(steps), **STYLES[style]
    )
    axes.fill_between(steps, curves.min(0), curves.max(0), color=STYLES[style]["color"], alpha=0.12, linewidth=0)


def draw_health(axes: Axes, runs: Sequence[RunData], label: str, measure: Measure, style: int) -> None:
    """The mean over seeds; a name without a line where nothing is there."""
    if not runs:
        axes.plot([], [], label=f"{label} (missing)", markersize=MARKER_SIZE, **STYLES[style])
        return
    steps = runs[0].health.step
    mean = np.array([measure(data.health) for data in runs], dtype=float).mean(0)
    axes.plot(steps, mean, label=label, markersize=MARKER_SIZE, markevery=sparse(steps), **STYLES[style])
