"""Small drawings of numbers, in Unicode's blocks and lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int, low: float | None = None, high: float | None = None) -> str:
    """Values, oldest first, as a line of at most `width` bars; where there are more, neighbours are averaged.

    low, high: what the lowest and the highest bar stand for; by default the least and the largest of what is drawn.
    What is not known is a blank.
    """
    drawn = _binned(values, width)
    known = [value for value in drawn if value is not None]
    if not known:
        return ""
    low = min(known) if low is None else low
    high = max(known) if high is None else high

    def bar(value: float | None) -> str:
        if value is None:
            return " "
        if high <= low:
            return _BARS[0]
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)]

    return "".join(map(bar, drawn))


def bar(share: float, width: int) -> tuple[str, str]:
    """A share, in [0, 1], of a bar of `width` cells: its heavy part, to half a cell, and the light rest."""
    whole, half = divmod(round(min(max(share, 0.0), 1.0) * width * 2), 2)
    return "━" * whole + "╾" * half, "─" * (width - whole - half)


def _binned(values: Sequence[float | None], width: int) -> list[float | None]:
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    if width < 1 or len(finite) <= width:
        return finite if width >= 1 else []
    edges = [len(finite) * i // width for i in range(width + 1)]
    return [_mean(finite[a:b]) for a, b in pairwise(edges)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
