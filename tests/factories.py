"""Episodes and tickets for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from shared.episodes import (
    ClosedTicket,
    Episode,
    Problem,
    Role,
    Task,
    Ticket,
    TicketId,
    Verdict,
    VersionSpan,
)


def make_problem(key: str, task: Task = Task.DEDUCTION, answer: str = "1", family: str | None = None) -> Problem:
    return Problem(task, key, key, key if family is None else family, answer)


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


def make_ticket(
    kind: Literal["proposal", "buffer"] = "proposal",
    task: Task = Task.DEDUCTION,
    *,
    index: int = 0,
    batch: int = 0,
    references: Sequence[Problem] = (),
) -> Ticket:
    id = TicketId(0, batch, index)
    return Ticket(id, kind, task, tuple(references), make_problem("fallback", task), min_version=0, seed=index)


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
    return ClosedTicket(ticket.id, proposal, proposed, problem, episodes, solve_rate=correct / attempts)
