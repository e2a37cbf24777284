"""The self-play round: one ticket from proposal to closed ticket, with no barrier to other tickets."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from rollout.chat import ChatTokenizer
from rollout.engine import Engine
from rollout.environment import Environment
from rollout.sample import Sample
from shared.config import Config
from shared.episodes import ClosedTicket, Episode, Int32Array, Problem, Role, Task, Ticket, Verdict
from shared.errors import PrimezeroError
from shared.rewards import proposer_reward, solve_rate, solver_reward

Attempts = tuple[Episode, ...]


class SelfPlay:
    """Plays both roles of one model for one ticket at a time; many tickets run concurrently."""

    def __init__(self, config: Config, engine: Engine, environment: Environment, chat: ChatTokenizer) -> None:
        self._config = config
        self._engine = engine
        self._environment = environment
        self._chat = chat

    async def play(self, ticket: Ticket) -> ClosedTicket:
        """Propose, validate, attempt, reward.

        The moment the proposal has ended its problem, or the ticket's fallback, is attempted; the proposal's
        reward follows from those attempts.
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
        attempts, estimates = await self._solve(problem, ticket, estimate=proposed is not None)
        rate = solve_rate([attempt.verdict for attempt in estimates or attempts])
        if proposal is not None:
            reward = proposer_reward(proposal.verdict, rate, len(proposal.response_ids), self._config.rewards)
            proposal = replace(proposal, reward=reward)
        return ClosedTicket(
            ticket.id,
            proposal,
            proposed,
            problem,
            attempts,
            rate,
            untrained_episodes=len(estimates),
            untrained_tokens=sum(len(estimate.response_ids) for estimate in estimates),
        )

    async def _propose(self, ticket: Ticket) -> tuple[Episode, Problem | None]:
        """The judged proposal, its reward still to come, and its problem if that is valid."""
        batch = ticket.id.batch
        prompt = self._environment.proposer_prompt(ticket.task, ticket.references, batch=batch)
        ids, [sample] = await self._sample(prompt, ticket, first=0, count=1)
        text = self._chat.decode(sample.token_ids.tolist())
        judged = self._environment.judge_proposal(ticket.task, text, batch=batch)
        verdict, problem = judged.verdict, judged.problem
        if problem is not None and any(problem.key == shown.key for shown in ticket.references):
            verdict, problem = Verdict.COPY, None
        return _episode(Role.PROPOSER, ticket.task, ids, sample, verdict, reward=0.0), problem

    async def _solve(self, problem: Problem, ticket: Ticket, *, estimate: bool) -> tuple[Attempts, Attempts]:
        """The attempts that train, and those that only estimate the solve rate, if any do.

        With separate samples (the paper's way) one sample of its own trains; only a problem whose solve rate
        decides about a reward (`estimate`) is attempted besides.
        """
        count = self._config.selfplay.attempts
        if self._config.selfplay.solver_samples == "attempts":
            return await self._attempt(problem, ticket, first=1, count=count), ()
        separate = self._attempt(problem, ticket, first=1 + count, count=1)
        if not estimate:
            return await separate, ()
        return await asyncio.gather(separate, self._attempt(problem, ticket, first=1, count=count))

    async def _attempt(self, problem: Problem, ticket: Ticket, *, first: int, count: int) -> Attempts:
        prompt = self._environment.solver_prompt(problem)
        ids, samples = await self._sample(prompt, ticket, first=first, count=count)
        attempts = []
        for sample in samples:
            verdict = self._environment.grade(problem, self._chat.decode(sample.token_ids.tolist()))
            reward = solver_reward(verdict, len(sample.token_ids), self._config.rewards)
            attempts.append(_episode(Role.SOLVER, problem.task, ids, sample, verdict, reward))
        return tuple(attempts)

    async def _sample(self, prompt: str, ticket: Ticket, *, first: int, count: int) -> tuple[Int32Array, list[Sample]]:
        """Samples `first` to `first + count` of the ticket.

        Sample i draws from the ticket's seed + i, the engine counting on from the request's seed: no two of a
        ticket may share i, or those of one prompt would be the same.
        """
        ids = self._chat.prompt(prompt)
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
            seed=(ticket.seed + first) % 2**63,
            request_id=f"{ticket.id.lineage}-{ticket.id.batch}-{ticket.id.index}-{first}",
        )
        return ids, samples


def _episode(
    role: Role, task: Task, prompt_ids: Int32Array, sample: Sample, verdict: Verdict, reward: float
) -> Episode:
    return Episode(
        role=role,
        task=task,
        prompt_ids=prompt_ids,
        response_ids=sample.token_ids,
        behaviour_logprobs=sample.logprobs,
        spans=sample.spans,
        truncated=sample.truncated,
        verdict=verdict,
        reward=reward,
    )
