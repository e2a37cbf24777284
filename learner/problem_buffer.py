"""The problem buffer: where references, fallbacks and buffer tickets come from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from shared.episodes import Problem, Task


class ProblemBuffer:
    """Per task type a capped set of distinct problems, sampled uniformly.

    Duplicates are refused by `Problem.key`. When full, a problem chosen uniformly at random leaves
    for the new one, so that the buffer neither freezes nor prefers recent problems.
    """

    def __init__(self, seeds: Mapping[Task, Sequence[Problem]], *, capacity: int, seed: int) -> None:
        self._capacity = capacity
        self._random = random.Random(f"problem buffer {seed}")
        self._problems: dict[Task, list[Problem]] = {task: [] for task in seeds}
        self._keys: dict[Task, set[str]] = {task: set() for task in seeds}
        for task, problems in seeds.items():
            if not problems:
                raise ValueError(f"the problem buffer for {task} has no seed problems")
            for problem in problems:
                self.add(problem)

    def size(self, task: Task) -> int:
        """Problems held for a task."""
        return len(self._problems[task])

    def add(self, problem: Problem) -> bool:
        """Take in a problem; False if it is already there."""
        problems, keys = self._problems[problem.task], self._keys[problem.task]
        if problem.key in keys:
            return False
        if len(problems) == self._capacity:
            leaving = self._random.randrange(len(problems))
            keys.remove(problems[leaving].key)
            problems[leaving] = problems[-1]
            problems.pop()
        problems.append(problem)
        keys.add(problem.key)
        return True

    def sample(self, task: Task, count: int, rng: random.Random) -> list[Problem]:
        """`count` distinct problems, uniformly; all of them, in random order, if there are fewer."""
        problems = self._problems[task]
        return rng.sample(problems, min(count, len(problems)))
