"""A model on an engine of its own, which solves what it is asked, and proposes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from launch.lengths import check_prompts
from launch.play.asking import Posed, Propose, Request, Solve, check_proposal, pose
from rollout.chat import ChatTokenizer
from rollout.environment import make_environment
from rollout.sample import Sample
from shared.config import Config
from shared.episodes import Role, Task, Verdict


class Sampler(Protocol):
    """The part of an engine that is needed here."""

    async def generate(
        self, prompt_ids: list[int], *, n: int, temperature: float, max_tokens: int, seed: int, request_id: str
    ) -> list[Sample]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """One completion: its text, without the token that ended it, its tokens, and how it was judged."""

    text: str
    token_ids: list[int]
    logprob: float
    verdict: Verdict
    truncated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """What the model was told in a role, and what it said. accepted: for a solver, the answer that is on record."""

    role: Role
    task: Task
    prompt: str
    responses: list[Response]
    accepted: str | None = None


class Player:
    """samples: of each problem; temperature: 0 is greedy"""

    def __init__(
        self, config: Config, engine: Sampler, chat: ChatTokenizer, *, samples: int = 1, temperature: float = 0.0
    ) -> None:
        self._config = config
        self._engine = engine
        self._chat = chat
        self._samples = samples
        self._temperature = temperature
        self._environment = make_environment(config.environment)
        self._rng = random.Random(config.run.seed)
        self._requests = count()

    async def answer(self, request: Request) -> list[Turn]:
        """The turns that the request comes to: an attempt; or a proposal and, if that is valid, an attempt at it.

        Raises ConfigError for a problem that there is not, or a prompt that is too long.
        """
        if isinstance(request, Solve):
            return [await self._solve(pose(self._config, request))]
        return await self._propose(request)

    async def _solve(self, posed: Posed) -> Turn:
        prompt, problem = posed.environment.solver_prompt(posed.problem), posed.problem
        responses = [
            self._judged(sample, posed.environment.grade(problem, self._text(sample)))
            for sample in await self._sample(prompt, self._samples)
        ]
        return Turn(Role.SOLVER, problem.task, prompt, responses, problem.answer)

    async def _propose(self, request: Propose) -> list[Turn]:
        """The references are random, so that the same request gives another proposal the next time."""
        check_proposal(self._config, request)
        environment, batch = self._environment, self._environment.stages[-1]
        shown = self._config.selfplay.references
        references = environment.seed_problems(request.task, shown, self._rng, batch=batch)
        prompt = environment.proposer_prompt(request.task, references, batch=batch)
        [sample] = await self._sample(prompt, 1)
        judged = environment.judge_proposal(request.task, self._text(sample), batch=batch)
        problem, verdict = judged.problem, judged.verdict
        if problem is not None and problem.key in {reference.key for reference in references}:
            verdict = Verdict.COPY
        turn = Turn(Role.PROPOSER, request.task, prompt, [self._judged(sample, verdict)])
        return [turn] if problem is None else [turn, await self._solve(Posed(environment, problem))]

    async def _sample(self, prompt: str, samples: int) -> list[Sample]:
        ids = self._chat.prompt_ids(prompt)
        check_prompts("this prompt", [len(ids)], self._config.sampling)
        return await self._engine.generate(
            ids,
            n=samples,
            temperature=self._temperature,
            max_tokens=self._config.sampling.max_response_tokens,
            seed=self._rng.getrandbits(62),
            request_id=f"play-{next(self._requests)}",
        )

    def _text(self, sample: Sample) -> str:
        return self._chat.decode(sample.token_ids.tolist())

    def _judged(self, sample: Sample, verdict: Verdict) -> Response:
        return Response(
            text=self._text(sample),
            token_ids=sample.token_ids.tolist(),
            logprob=float(sample.logprobs.sum()),
            verdict=verdict,
            truncated=sample.truncated,
        )
