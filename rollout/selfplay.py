"""The self-play round: one ticket from proposal to closed ticket, with no barrier to other tickets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rollout.chat import ChatTokenizer
from rollout.engine import Engine
from rollout.environment import Environment
from rollout.sample import Sample
from shared.config import Config
from shared.episodes import ClosedTicket, Episode, Problem, Role, Task, Ticket, Verdict
from shared.errors import PrimezeroError
from shared.rewards import proposer_reward, solver_reward


class SelfPlay:
    """Plays both roles of one model for one ticket at a time; many tickets run concurrently."""

    def __init__(self, config: Config, engine: Engine, environment: Environment, chat: ChatTokenizer) -> None:
        self._config = config
        self._engine = engine
        self._environment = environment
        self._chat = chat

    async def play(self, ticket: Ticket) -> ClosedTicket:
        """Propose, validate, attempt, reward.

        The moment the proposal has ended its problem, or the ticket's fallback, is attempted
        `selfplay.attempts` times; the proposal's reward follows from those attempts.
        """
        if self._engine.version < ticket.min_version:
            raise PrimezeroError(
                f"ticket {ticket.id} needs weights of version {ticket.min_version}, "
                f"the engine has {self._engine.version}"
            )
        proposal, proposed = None, None
        if ticket.kind == "proposal":
            proposal, proposed = await self._propose(ticket)
        problem = proposed or ticket.problem
        attempts = await self._attempt(problem, ticket)
        closed = ClosedTicket(ticket.id, proposal, proposed, problem, attempts)
        if proposal is None:
            return closed
        rate = closed.solve_rate if proposed is not None else None
        reward = proposer_reward(proposal.verdict, rate, len(proposal.response_ids), self._config.rewards)
        return replace(closed, proposal=replace(proposal, reward=reward))

    async def _propose(self, ticket: Ticket) -> tuple[Episode, Problem | None]:
        """The judged proposal, its reward still to come, and its problem if that is valid."""
        prompt = self._environment.proposer_prompt(ticket.task, ticket.references)
        ids, [sample] = await self._sample(prompt, ticket, stage=0, count=1)
        judged = self._environment.judge_proposal(ticket.task, self._chat.decode(sample.token_ids.tolist()))
        verdict, problem = judged.verdict, judged.problem
        if problem is not None and any(problem.key == shown.key for shown in ticket.references):
            verdict, problem = Verdict.COPY, None
        return _episode(Role.PROPOSER, ticket.task, ids, sample, verdict, reward=0.0), problem

    async def _attempt(self, problem: Problem, ticket: Ticket) -> tuple[Episode, ...]:
        prompt = self._environment.solver_prompt(problem)
        ids, samples = await self._sample(prompt, ticket, stage=1, count=self._config.selfplay.attempts)
        attempts = []
        for sample in samples:
            verdict = self._environment.grade(problem, self._chat.decode(sample.token_ids.tolist()))
            reward = solver_reward(verdict, len(sample.token_ids), self._config.rewards)
            attempts.append(_episode(Role.SOLVER, problem.task, ids, sample, verdict, reward))
        return tuple(attempts)

    async def _sample(
        self, prompt: str, ticket: Ticket, *, stage: int, count: int
    ) -> tuple[Sequence[int], list[Sample]]:
        ids = self._chat.prompt_ids(prompt)
        limit = self._config.sampling.max_prompt_tokens
        if len(ids) > limit:
            raise PrimezeroError(
                f"a prompt of {len(ids)} tokens exceeds sampling.max_prompt_tokens={limit}; it is not cut: {prompt!r}"
            )
        samples = await self._engine.generate(
            ids,
            n=count,
            temperature=self._config.sampling.temperature,
            max_tokens=self._config.sampling.max_response_tokens,
            seed=(ticket.seed + stage) % 2**63,
            request_id=f"{ticket.id.lineage}-{ticket.id.batch}-{ticket.id.index}-{stage}",
        )
        return ids, samples


def _episode(
    role: Role, task: Task, prompt_ids: Sequence[int], sample: Sample, verdict: Verdict, reward: float
) -> Episode:
    return Episode(
        role=role,
        task=task,
        prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
        response_ids=sample.token_ids,
        behaviour_logprobs=sample.logprobs,
        spans=sample.spans,
        truncated=sample.truncated,
        verdict=verdict,
        reward=reward,
    )
