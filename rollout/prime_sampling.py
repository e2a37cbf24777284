"""Drawing problems from a universe of any size without listing it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from rollout.prime_problems import Equations, Universe, in_random_order
from shared.episodes import Task

# A universe with more problems than this is looked at through so many of them.
CANDIDATES = 100_000


def smallest_trainable(universe: Universe, task: Task, total: int) -> Equations | None:
    """The first problem below number `total` that is not held out; None if the first CANDIDATES all are."""
    problems = (universe.at(task, index) for index in range(min(total, CANDIDATES)))
    return next((each for each in problems if not universe.is_held_out(each)), None)


def trainable(universe: Universe, task: Task, total: int, rng: random.Random) -> Iterator[Equations]:
    """The problems below number `total` that are not held out, in random order; of CANDIDATES random ones at most."""
    for index in islice(in_random_order(total, rng), CANDIDATES):
        equations = universe.at(task, index)
        if not universe.is_held_out(equations):
            yield equations


def ascending(universe: Universe, task: Task, size: int, rng: random.Random, *, held_out: bool) -> Iterator[int]:
    """The numbers of the problems that are held out, or of those that are not; of `size` random ones at most."""
    total = universe.total(task)
    numbers = range(total) if total <= size else sorted(islice(in_random_order(total, rng), size))
    if universe.share == 0:
        return iter(() if held_out else numbers)
    return (index for index in numbers if universe.is_held_out(universe.at(task, index)) is held_out)


def one_of_each_slice(numbers: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """One at random from each of `count` equal slices; all of them where there are no more than `count`."""
    total = len(numbers)
    count = min(count, total)
    bounds = [total * index // count for index in range(count + 1)] if count else []
    return [numbers[rng.randrange(*bounds[index : index + 2])] for index in range(count)]
