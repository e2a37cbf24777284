"""How lines over training steps are drawn: told apart by line style and marker, so that they can be read in grey."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes

# Colours of Okabe and Ito: apart for colour-blind eyes, and of different lightness.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    {"color": "#009E73", "linestyle": ":", "marker": "D"},
    {"color": "#CC79A7", "linestyle": (0, (6, 1, 1, 1, 1, 1)), "marker": "v"},
)
MARKER_SIZE = 3.5
# The second time round markers are open.
MOST_LINES = 2 * len(STYLES)
STEPS_LABEL = "training steps (batches)"


def figure_style() -> AbstractContextManager[None]:
    """What figures are drawn and saved under. Nothing random: the same data give the same bytes."""
    return matplotlib.rc_context(
        {
            "svg.hashsalt": "primezero",
            "svg.fonttype": "none",
            "font.size": 9,
            "lines.linewidth": 1.3,
        }
    )


def style(index: int) -> dict[str, Any]:
    """How line `index` of a figure looks, from 0; below MOST_LINES no two are alike."""
    look = STYLES[index % len(STYLES)]
    return look | {"markerfacecolor": "white"} if index >= len(STYLES) else look


def plain(name: str) -> str:
    """A label that shows a name as it is: neither as mathematics, nor, for an underscore in front, not at all."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def sparse(points: Sequence[object]) -> int:
    """Every how many points a marker is drawn: about a dozen on a line."""
    return max(1, len(points) // 12)


def name_axes(axes: Axes, label: str) -> None:
    """Steps to the right, `label` upwards."""
    axes.set_xlabel(STEPS_LABEL)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3, linewidth=0.5)
