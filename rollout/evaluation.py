"""Greedy evaluation of the weights now live, on the environment's fixed problem set."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from rollout.chat import ChatTokenizer
from rollout.engine import Engine
from rollout.environment import Environment
from shared.episodes import Evaluation, Problem, Task, TaskAccuracy, Verdict
from shared.errors import EngineError

# The set is part of what an accuracy means, so it does not depend on the run's seed.
EVALUATION_SEED = 20_250_503


async def evaluate(
    engine: Engine,
    environment: Environment,
    chat: ChatTokenizer,
    *,
    version: int,
    problems_per_task: int,
    max_response_tokens: int,
) -> Evaluation:
    """Accuracy per task at temperature 0.

    Raises EngineError unless every token was sampled by `version`.
    """
    problems = {
        task: environment.evaluation_problems(task, problems_per_task, EVALUATION_SEED) for task in environment.tasks
    }

    async def attempt(problem: Problem, name: str) -> tuple[Verdict, int]:
        [sample] = await engine.generate(
            chat.prompt_ids(environment.solver_prompt(problem)),
            n=1,
            temperature=0.0,
            max_tokens=max_response_tokens,
            seed=0,
            request_id=f"evaluation-{version}-{name}",
        )
        if any(span.version != version for span in sample.spans):
            raise EngineError(f"the weights changed while version {version} was evaluated")
        return environment.grade(problem, chat.decode(sample.token_ids.tolist())), len(sample.token_ids)

    attempts = await asyncio.gather(
        *(attempt(p, f"{task}-{i}") for task, chosen in problems.items() for i, p in enumerate(chosen))
    )
    return Evaluation(version, _by_task(problems, attempts))


def _by_task(
    problems: Mapping[Task, Sequence[Problem]], attempts: Sequence[tuple[Verdict, int]]
) -> dict[Task, TaskAccuracy]:
    results = iter(attempts)
    accuracies = {}
    for task, chosen in problems.items():
        judged = [next(results) for _ in chosen]
        accuracies[task] = TaskAccuracy(
            problems=len(chosen),
            accuracy=sum(verdict is Verdict.CORRECT for verdict, _ in judged) / len(chosen),
            unparsable=sum(verdict is Verdict.UNPARSABLE for verdict, _ in judged) / len(chosen),
            response_tokens=sum(length for _, length in judged) / len(chosen),
        )
    return accuracies
