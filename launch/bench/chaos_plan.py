"""What is done to a run, when, and to whom: drawn from a seed before the run begins."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

VICTIMS = ("rollout", "engine", "learner", "launcher")
BLOWS = ("SIGKILL", "SIGSTOP")
# After its last step a run evaluates, exports and leaves: a hit has to find it at work.
_LAST_STEPS = 3
_LONGEST_DELAY_S = 1.0


@dataclass(frozen=True, slots=True)
class Hit:
    """One blow: once the run has made `step` and another `delay_s` seconds have passed, `victim` gets `blow`."""

    step: int
    delay_s: float
    victim: str
    blow: str


def plan(*, steps: int, hits: int, first: int, seed: int) -> list[Hit]:
    """`hits` hits in order, spread over the steps from `first` until shortly before the last.

    One falls, at random, into each of as many equal parts of the run. Every kind of blow comes as often as every other,
    or once more, in a random order.
    """
    rng = random.Random(f"chaos {seed}")
    part = (steps - _LAST_STEPS - first) / hits
    if part <= 0:
        raise ValueError(f"{steps} steps are too few")
    return [
        Hit(first + int((number + rng.random()) * part), rng.uniform(0, _LONGEST_DELAY_S), victim, blow)
        for number, (victim, blow) in enumerate(itertools.islice(_kinds(rng), hits))
    ]


def _kinds(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        kinds = list(itertools.product(VICTIMS, BLOWS))
        rng.shuffle(kinds)
        yield from kinds


class GoingOn:
    """Whether a run has made a step since it was last hit. A learner that starts again goes back by some steps."""

    def __init__(self) -> None:
        self._lowest: int | None = None

    def hit(self) -> None:
        """From here on."""
        self._lowest = None

    def has_made(self, step: int) -> bool:
        """Tell it the newest step on record."""
        self._lowest = step if self._lowest is None else min(self._lowest, step)
        return step > self._lowest
