"""What an evaluation's counts say: intervals for shares, for differences and for means of shares, and pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

CONFIDENCE = 0.95


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The score interval for a share (Wilson 1927, J. Am. Stat. Assoc. 22:209): (low, high).

    Unlike the normal approximation it has a width at 0 and at `trials` successes. Raises ValueError when the counts or
    the confidence are impossible.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials")
    z = _quantile(confidence)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At the ends the limit is exact; rounding would put it just outside [0, 1], or inside.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def paired_difference_interval(
    only_first: int, only_second: int, trials: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """For the difference of two shares of the same `trials`: (low, high) of first - second.

    The adjusted Wald interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37:479): only the trials count at which
    exactly one of the two succeeded. Raises ValueError when the counts are impossible.
    """
    if min(only_first, only_second) < 0 or only_first + only_second > trials or trials < 1:
        raise ValueError(f"{only_first} and {only_second} one-sided successes in {trials} trials")
    first, second = (only_first + 1) / (trials + 2), (only_second + 1) / (trials + 2)
    half = _quantile(confidence) * math.sqrt((first + second - (first - second) ** 2) / (trials + 2))
    return max(-1.0, first - second - half), min(1.0, first - second + half)


def mean_interval(estimates: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """For the unweighted mean of independent estimates, each (value, low, high): (low, high).

    The distances from each value to its limits add up in squares (MOVER: Zou and Donner 2008, Stat. Med. 27:1693). It
    keeps the asymmetry of Wilson's intervals, and is never of no width. Raises ValueError for no estimates.
    """
    if not estimates:
        raise ValueError("no estimates")
    count = len(estimates)
    mean = sum(value for value, _, _ in estimates) / count
    below = math.sqrt(sum((value - low) ** 2 for value, low, _ in estimates))
    above = math.sqrt(sum((high - value) ** 2 for value, _, high in estimates))
    return mean - below / count, mean + above / count


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that one of k of the samples, drawn without replacement, is correct.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, section 2.1), in whole
    numbers up to its single division. Raises ValueError unless 1 <= k <= samples and 0 <= correct <= samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {samples} samples, {correct} of them correct")
    ways = math.comb(samples, k)
    return (ways - math.comb(samples - correct, k)) / ways


def _quantile(confidence: float) -> float:
    """Standard normal quantile of a two-sided interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
