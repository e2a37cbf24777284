"""What a proposal's reward owes to the other proposals of its batch: repeats, and how common its answer is.

Judged over the released batch in ticket order, so that neither arrival nor the choice of worker decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from shared.config import RewardConfig, SelfPlayConfig
from shared.episodes import ClosedTicket, Episode, Task, Verdict
from shared.rewards import answer_diversity_bonus, proposer_reward, repeat_penalty


def judge_repeats(
    tickets: Sequence[ClosedTicket], selfplay: SelfPlayConfig, rewards: RewardConfig
) -> tuple[ClosedTicket, ...]:
    """The batch's tickets, in order, with the verdicts and rewards of their proposals final.

    Under `repeat_in_batch` "invalid" every copy of a problem but the first becomes a REPEAT; under "penalise"
    all copies stay VALID and pay for it. What stays VALID has the answer-diversity bonus added. Nothing else
    of a ticket changes: attempts on a repeated problem still train the solver.
    """
    if selfplay.repeat_in_batch == "invalid":
        tickets = _without_copies(tickets, rewards)
    valid = [t.proposed for t in tickets if t.proposed is not None and _is_valid(t.proposal)]
    per_task = Counter(p.task for p in valid)
    per_problem = Counter((p.task, p.key) for p in valid)
    per_answer = Counter((p.task, p.answer) for p in valid)

    def judged(ticket: ClosedTicket) -> ClosedTicket:
        proposal, problem = ticket.proposal, ticket.proposed
        if proposal is None or problem is None or not _is_valid(proposal):
            return ticket
        total = per_task[problem.task]
        reward = proposal.reward
        reward += answer_diversity_bonus(per_answer[problem.task, problem.answer] / total, rewards)
        if selfplay.repeat_in_batch == "penalise":
            reward -= repeat_penalty(per_problem[problem.task, problem.key], total, rewards)
        return replace(ticket, proposal=replace(proposal, reward=reward))

    return tuple(judged(ticket) for ticket in tickets)


def _without_copies(tickets: Sequence[ClosedTicket], rewards: RewardConfig) -> list[ClosedTicket]:
    seen: set[tuple[Task, str]] = set()
    judged = []
    for ticket in tickets:
        if ticket.proposal is not None and ticket.proposed is not None:
            name = (ticket.proposed.task, ticket.proposed.key)
            if name in seen:
                reward = proposer_reward(Verdict.REPEAT, None, len(ticket.proposal.response_ids), rewards)
                ticket = replace(ticket, proposal=replace(ticket.proposal, verdict=Verdict.REPEAT, reward=reward))
            seen.add(name)
        judged.append(ticket)
    return judged


def _is_valid(proposal: Episode | None) -> bool:
    return proposal is not None and proposal.verdict is Verdict.VALID
