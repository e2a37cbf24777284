"""Attempts on fixed problem sets, greedy or sampled, and the evaluation of the weights now live."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.chat import ChatTokenizer
from rollout.engine import Engine
from rollout.environment import Environment
from rollout.sample import Sample
from shared.episodes import Evaluation, Problem, Task, TaskAccuracy, Verdict
from shared.errors import EngineError

# The set is part of what an accuracy means, so it does not depend on the run's seed.
EVALUATION_SEED = 20_250_503


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How problems are attempted.

    attempts: of each problem; temperature: 0 is greedy; seed: of all that is sampled
    at_once: problems that the engine has at a time, so that waiting for others does not use up the limit for one
        completion; None: all
    """

    max_response_tokens: int
    attempts: int = 1
    temperature: float = 0.0
    seed: int = 0
    at_once: int | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One judged completion: its length includes the stop token; truncated: cut by the length limit."""

    verdict: Verdict
    response_tokens: int
    truncated: bool

    @property
    def correct(self) -> bool:
        """Whether the answer was accepted."""
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True, slots=True)
class Attempted:
    """A problem and all attempts on it, in the order of their seeds."""

    problem: Problem
    attempts: tuple[Attempt, ...]


def evaluation_set(environment: Environment, problems_per_task: int, *, held_out: bool = False) -> list[Problem]:
    """The fixed set of all tasks, task by task; with `held_out`, that of the problems which are never trained on."""
    return [
        problem
        for task in environment.tasks
        for problem in environment.evaluation_problems(task, problems_per_task, EVALUATION_SEED, held_out=held_out)
    ]


async def attempt(
    engine: Engine,
    environment: Environment,
    chat: ChatTokenizer,
    problems: Sequence[Problem],
    decoding: Decoding,
    *,
    version: int,
    name: str,
) -> list[Attempted]:
    """Attempt and judge the problems, in their order; `name` tells the requests from others of the same engine.

    Raises EngineError unless every token was sampled by `version`.
    """
    gate = asyncio.Semaphore(decoding.at_once or max(1, len(problems)))

    async def one(problem: Problem, request_id: str) -> Attempted:
        async with gate:
            samples = await engine.generate(
                chat.prompt_ids(environment.solver_prompt(problem)),
                n=decoding.attempts,
                temperature=decoding.temperature,
                max_tokens=decoding.max_response_tokens,
                # Samples of a request draw from consecutive seeds: those of two requests are to be far apart.
                seed=random.Random(f"{decoding.seed} {problem.task} {problem.key}").getrandbits(62),
                request_id=request_id,
            )
        if any(span.version != version for sample in samples for span in sample.spans):
            raise EngineError(f"the weights changed while version {version} was evaluated")
        return Attempted(problem, tuple(judged(problem, sample) for sample in samples))

    def judged(problem: Problem, sample: Sample) -> Attempt:
        ids = sample.token_ids.tolist()
        return Attempt(environment.grade(problem, chat.decode(ids)), len(ids), sample.truncated)

    return await asyncio.gather(*(one(problem, f"{name}-{i}") for i, problem in enumerate(problems)))


async def evaluate(
    engine: Engine,
    environment: Environment,
    chat: ChatTokenizer,
    *,
    version: int,
    problems_per_task: int,
    max_response_tokens: int,
    at_once: int | None = None,
) -> Evaluation:
    """Greedy accuracy per task, on what may be trained on and, apart, on what is held out.

    at_once: requests that the engine is given at a time; by default all. Raises EngineError unless every token was
    sampled by `version`.
    """
    trainable = evaluation_set(environment, problems_per_task)
    held_out = evaluation_set(environment, problems_per_task, held_out=True)
    decoding = Decoding(max_response_tokens=max_response_tokens, at_once=at_once)
    attempted = await attempt(
        engine,
        environment,
        chat,
        [*trainable, *held_out],
        decoding,
        version=version,
        name=f"evaluation-{version}",
    )
    return Evaluation(version, _accuracies(attempted[: len(trainable)]), _accuracies(attempted[len(trainable) :]))


def _accuracies(attempted: Sequence[Attempted]) -> dict[Task, TaskAccuracy]:
    """Of the tasks that occur, in their order; a single attempt on each problem."""
    by_task: dict[Task, list[Attempt]] = {}
    for each in attempted:
        by_task.setdefault(each.problem.task, []).extend(each.attempts)
    return {task: task_accuracy(attempts) for task, attempts in by_task.items()}


def task_accuracy(attempts: Sequence[Attempt]) -> TaskAccuracy:
    """What the attempts, one on each of a task's problems, come to."""
    count = len(attempts)
    return TaskAccuracy(
        problems=count,
        accuracy=sum(a.correct for a in attempts) / count,
        unparsable=sum(a.verdict is Verdict.UNPARSABLE for a in attempts) / count,
        response_tokens=sum(a.response_tokens for a in attempts) / count,
    )
