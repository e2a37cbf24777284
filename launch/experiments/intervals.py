"""Means over seeds, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

# 0.975 quantiles of Student's t by degrees of freedom (any table of the distribution): 95% of it lies between ±t.
T_975 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622}


@dataclass(frozen=True, slots=True)
class Interval:
    """mean ± half_width; half_width is None for a single value, which says nothing about its own spread."""

    mean: float
    half_width: float | None


def t_interval(values: Sequence[float]) -> Interval:
    """The 95% interval mean ± t·s/√n of 1 to 10 values, s their sample standard deviation (ddof 1)."""
    n = len(values)
    if n == 1:
        return Interval(values[0], None)
    return Interval(fmean(values), T_975[n - 1] * stdev(values) / sqrt(n))
