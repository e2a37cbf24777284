"""The problem buffer: where references, fallbacks and buffer tickets come from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from shared.episodes import Problem, Task
from shared.errors import CheckpointError

_Word = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """problems: of each task, in the order that sampling indexes; random: of `random.Random.getstate`."""

    problems: dict[Task, list[Problem]]
    random: tuple[int, tuple[_Word, ...], float | None]


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

    def state(self) -> dict[str, Any]:
        """Everything that decides what is sampled and what is evicted, as plain data for JSON or msgpack."""
        version, words, gauss = self._random.getstate()
        state: dict[str, Any] = msgspec.to_builtins(_State(self._problems, (version, words, gauss)))
        return state

    def restore(self, state: object) -> None:
        """Go on exactly where `state()` was taken, by a buffer of these tasks.

        Raises CheckpointError, with nothing changed, when `state` is malformed or does not fit these settings.
        """
        try:
            restored = msgspec.convert(state, _State)
            generator = random.Random()
            generator.setstate(restored.random)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise CheckpointError(f"the checkpoint's problem buffer is malformed: {error}") from error
        if restored.problems.keys() != self._problems.keys():
            raise CheckpointError(
                f"the checkpoint's problem buffer is for {sorted(restored.problems)}, not {sorted(self._problems)}"
            )
        for task, problems in restored.problems.items():
            self._check(task, problems)
        self._random = generator
        self._problems = restored.problems
        self._keys = {task: {problem.key for problem in problems} for task, problems in restored.problems.items()}

    def _check(self, task: Task, problems: Sequence[Problem]) -> None:
        if len(problems) > self._capacity:
            raise CheckpointError(
                f"the checkpoint's problem buffer holds {len(problems)} {task} problems, more than "
                f"selfplay.buffer_capacity={self._capacity}: resume with at least as many"
            )
        distinct = {problem.key for problem in problems if problem.task is task}
        if not problems or len(distinct) != len(problems):
            raise CheckpointError(f"the checkpoint's {task} problems are none, not distinct, or of another task")
