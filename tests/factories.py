"""Episodes and tickets for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.episodes import (
    ClosedTicket,
    Episode,
    Problem,
    Role,
    Task,
    Ticket,
    Verdict,
    VersionSpan,
)


def make_episode(
    role: Role = Role.SOLVER,
    task: Task = Task.DEDUCTION,
    *,
    prompt: Sequence[int] = (1, 2, 3),
    response: Sequence[int] = (4, 5),
    version: int = 0,
    verdict: Verdict = Verdict.CORRECT,
    reward: float = 1.0,
) -> Episode:
    return Episode(
        role=role,
        task=task,
        prompt_ids=np.array(prompt, dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
        behaviour_logprobs=np.full(len(response), -0.5, dtype=np.float32),
        spans=(VersionSpan(version, 0, len(response)),),
        truncated=False,
        verdict=verdict,
        reward=reward,
    )


def make_closed(
    ticket: Ticket, *, attempts: int = 2, proposed: Problem | None = None, version: int | None = None, correct: int = 1
) -> ClosedTicket:
    """What an honest worker would make of a ticket: `correct` of `attempts` right."""
    at = ticket.min_version if version is None else version
    problem = proposed or ticket.problem
    proposal = None
    if ticket.kind == "proposal":
        valid = proposed is not None
        proposal = make_episode(
            Role.PROPOSER,
            ticket.task,
            version=at,
            verdict=Verdict.VALID if valid else Verdict.INVALID,
            reward=0.5 if valid else -0.5,
        )
    episodes = tuple(
        make_episode(
            task=ticket.task,
            version=at,
            verdict=Verdict.CORRECT if i < correct else Verdict.WRONG,
            reward=1.0 if i < correct else -0.5,
        )
        for i in range(attempts)
    )
    return ClosedTicket(ticket.id, proposal, proposed, problem, episodes)
