"""Whether a closed ticket fits the ticket that was issued."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shared.config import SelfPlayConfig
from shared.episodes import ClosedTicket, Episode, Problem, Role, Ticket, Verdict
from shared.errors import MessageError
from shared.limits import MAX_REWARD
from shared.rewards import solve_rate

MAX_PROBLEM_CHARACTERS = 65_536
SOLVE_RATE_TOLERANCE = 1e-6
# Tuples: looking an enum's member up in a set calls back into Python to hash it.
PROPOSERS_VERDICTS = (Verdict.VALID, Verdict.INVALID, Verdict.COPY, Verdict.HELD_OUT, Verdict.UNPARSABLE)
SOLVERS_VERDICTS = (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE)


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What no honest episode exceeds: tokens in prompt and response, and ids below `vocabulary`."""

    prompt: int
    response: int
    vocabulary: int


def check_closed(ticket: Ticket, closed: ClosedTicket, selfplay: SelfPlayConfig, limits: TokenLimits) -> None:
    """Raise MessageError unless `closed` is what an honest worker could have made of `ticket`.

    That its token ids are of the vocabulary has been checked when they were read (`TicketFrame.closed`).
    """
    _check_proposal(ticket, closed)
    if closed.problem != (closed.proposed or ticket.problem):
        raise MessageError("a closed ticket on another problem than its own")
    if closed.problem.task is not ticket.task:
        raise MessageError("a closed ticket of another task")
    if _longest_field(closed.problem) > MAX_PROBLEM_CHARACTERS:
        raise MessageError("a closed ticket with an endless problem")
    if len(closed.attempts) != selfplay.trained_attempts:
        raise MessageError(f"a closed ticket with the wrong number of attempts: {len(closed.attempts)}")
    _check_solve_rate(closed, selfplay)
    if closed.proposal is not None:
        _check_episode(closed.proposal, Role.PROPOSER, PROPOSERS_VERDICTS, ticket, limits)
    for attempt in closed.attempts:
        _check_episode(attempt, Role.SOLVER, SOLVERS_VERDICTS, ticket, limits)


def _check_proposal(ticket: Ticket, closed: ClosedTicket) -> None:
    proposal, proposed = closed.proposal, closed.proposed
    valid = proposal is not None and proposal.verdict is Verdict.VALID
    if (proposal is not None) != (ticket.kind == "proposal") or valid != (proposed is not None):
        raise MessageError("a closed ticket with the wrong proposal")
    if proposed is not None and any(proposed.key == shown.key for shown in ticket.references):
        raise MessageError("a valid proposal that is one of its references")


def _check_solve_rate(closed: ClosedTicket, selfplay: SelfPlayConfig) -> None:
    if not 0 <= closed.solve_rate <= 1:
        raise MessageError(f"an impossible solve rate: {closed.solve_rate}")
    # The estimates of a valid proposal stay with the worker: there is nothing here to compare with.
    estimated = selfplay.solver_samples == "separate" and closed.proposed is not None
    attempts = solve_rate([attempt.verdict for attempt in closed.attempts])
    if not estimated and abs(closed.solve_rate - attempts) > SOLVE_RATE_TOLERANCE:
        raise MessageError(
            f"a solve rate that is not the attempts': {closed.solve_rate} where the attempts come to {attempts}"
        )


def _check_episode(
    episode: Episode, role: Role, verdicts: Collection[Verdict], ticket: Ticket, limits: TokenLimits
) -> None:
    if episode.role is not role:
        raise MessageError("a closed ticket with its roles mixed up")
    if episode.task is not ticket.task:
        raise MessageError("a closed ticket of another task")
    if episode.verdict not in verdicts:
        raise MessageError(f"a {role} that is judged {episode.verdict}")
    if not abs(episode.reward) <= MAX_REWARD:
        raise MessageError("an episode with an impossible reward")
    if len(episode.prompt_ids) > limits.prompt or len(episode.response_ids) > limits.response:
        raise MessageError("an episode longer than sampling allows")
    before = ticket.min_version
    for span in episode.spans:
        if not ticket.min_version <= span.version <= ticket.id.batch:
            raise MessageError(
                "a token of weights that its ticket is not for: "
                f"version {span.version} in a ticket of batch {ticket.id.batch}"
            )
        if span.version < before:
            raise MessageError("an episode whose weight versions go backwards")
        before = span.version


def _longest_field(problem: Problem) -> int:
    return max(len(problem.content), len(problem.key), len(problem.family), len(problem.answer))
