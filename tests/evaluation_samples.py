"""Judged attempts for the tests of the report, and an environment that knows nothing but slices and baselines."""

from __future__ import annotations

from collections.abc import Sequence

from factories import make_problem

from launch.evaluation_results import Compared, Outcome
from rollout.evaluation import Attempt
from shared.episodes import Problem, Task, Verdict

VERDICTS = {"+": Verdict.CORRECT, "-": Verdict.WRONG, "?": Verdict.UNPARSABLE}


class SlicedEnvironment:
    """The problem "0" of each task is an easy one; a constant answer is right for a share of 1 / problems."""

    def slices(self, problem: Problem) -> tuple[str, ...]:
        return ("easy",) if problem.content == "0" else ()

    def baselines(self, problems: Sequence[Problem]) -> dict[str, float]:
        only_here = {"next prime": 0.5} if problems[0].task is Task.INDUCTION else {}
        return {"constant": 1 / len(problems), **only_here}


def attempts(marks: str, tokens: int = 4) -> tuple[Attempt, ...]:
    return tuple(Attempt(VERDICTS[mark], tokens, truncated=mark == "?") for mark in marks)


def compared(task: Task, *models: tuple[str, Sequence[str]]) -> list[Compared]:
    """Each model is one mark per problem for greedy decoding, and a string of marks per problem for the samples."""
    return [
        Compared(make_problem(str(i), task), outcomes)
        for i, outcomes in enumerate(
            zip(*(_outcomes(greedy, samples) for greedy, samples in models), strict=True),
        )
    ]


def _outcomes(greedy: str, samples: Sequence[str]) -> list[Outcome]:
    each = samples or [""] * len(greedy)
    return [Outcome(*attempts(mark), attempts(more)) for mark, more in zip(greedy, each, strict=True)]
