"""Arms of a benchmark in turn, so that what changes on the machine meanwhile changes for all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def in_turn(
    arms: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """What each arm returned in each of `rounds` rounds, after one that warms up and is not counted.

    Every other round runs the arms backwards: none is always the one after the other.
    """
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        order = list(arms) if number % 2 else list(arms)[::-1]
        for name in order:
            gc.collect()
            value = arms[name]()
            if number:
                found[name].append(value)
        if number:
            say(f"round {number} of {rounds}: " + ", ".join(f"{name} {found[name][-1]:.4g}" for name in arms))
    return found


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def median_ratio(values: Sequence[float], references: Sequence[float]) -> float:
    """The median over rounds of value / reference in the same round."""
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))
