"""How prime inversion's problems are written: as Problem records, and as the numbers that a proposer states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from rollout.prime_problems import Equations, Universe
from shared.config import EnvironmentConfig
from shared.episodes import Problem, Task

PROBLEMS_KEPT = 1024
_CONTENT = re.compile(r"[1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*")


class Notation:
    """Writes the problems of `universe` and reads them back."""

    def __init__(self, universe: Universe, config: EnvironmentConfig) -> None:
        self._universe = universe
        self._range = [config.min_prime, config.max_prime]
        self._pairs = config.induction_pairs
        self._full = config.proposal == "full"
        self._swapped_is_copy = config.swapped_is_copy
        self._read = lru_cache(PROBLEMS_KEPT)(self._equations)

    def problem(self, task: Task, equations: Equations) -> Problem:
        content, family = ",".join(map(str, equations.shown(task))), equations.family
        key = family if self._swapped_is_copy else content
        return Problem(task, content, key, family, str(equations.hidden(task)))

    def equations(self, problem: Problem) -> Equations:
        """All parts of `problem`; ValueError unless it is exactly what `problem` of this class would make.

        The last PROBLEMS_KEPT are kept: each is asked for with every attempt at it.
        """
        return self._read(problem)

    def _equations(self, problem: Problem) -> Equations:
        task, content = problem.task, problem.content
        shown = content.split(",", self.shown_count(task))
        if len(shown) != self.shown_count(task) or not _CONTENT.fullmatch(content):
            raise ValueError(f"malformed {task} problem: {content[:40]!r}")
        equations = self._universe.solve(task, tuple(map(int, shown)))
        if equations is None:
            raise ValueError(f"no {task} problem for primes in {self._range}: {content[:40]!r}")
        if self.problem(task, equations) != problem:
            raise ValueError(
                f"malformed {task} problem: {content[:40]!r} with key {problem.key[:40]!r}, "
                f"family {problem.family[:40]!r}, answer {problem.answer[:40]!r}"
            )
        return equations

    def shown_count(self, task: Task) -> int:
        return 2 * self._pairs if task is Task.INDUCTION else 2

    def stated_count(self, task: Task) -> int:
        return self.shown_count(task) + self._full

    def stated(self, task: Task, equations: Equations) -> tuple[int, ...]:
        """What a proposer states: the numbers shown; or x, y, p, the pairs before p."""
        return (*equations.shown(Task.INDUCTION), equations.p) if self._full else equations.shown(task)

    def solve(self, task: Task, stated: Sequence[int]) -> Equations | None:
        """The problem that a proposer states by `stated_count` numbers; None if there is no such problem."""
        if not self._full:
            return self._universe.solve(task, stated)
        *pairs, p = stated
        shown = {Task.DEDUCTION: (pairs[0], p), Task.ABDUCTION: (pairs[1], p), Task.INDUCTION: tuple(pairs)}[task]
        equations = self._universe.solve(task, shown)
        if equations is None or equations.p != p:
            return None
        return equations if task is Task.INDUCTION or equations.pairs == (tuple(pairs),) else None
