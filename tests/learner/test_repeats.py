"""Repeats and answer diversity: what a proposal's reward owes to the rest of its batch."""

from __future__ import annotations

import pytest
from factories import make_closed, make_problem, make_ticket

from learner.repeats import judge_repeats
from shared.config import RewardConfig, SelfPlayConfig
from shared.episodes import ClosedTicket, Problem, Task, Verdict

A, B, C = (make_problem(key, answer=answer) for key, answer in (("a", "1"), ("b", "1"), ("c", "2")))


def closed(*proposed: Problem | None) -> list[ClosedTicket]:
    """One proposal ticket for each problem, None for an invalid proposal; valid ones come with reward 0.5."""
    return [
        make_closed(make_ticket(task=Task.DEDUCTION if p is None else p.task, index=i), proposed=p)
        for i, p in enumerate(proposed)
    ]


def judged(tickets, mode, **rewards) -> list[tuple[Verdict, float]]:
    after = judge_repeats(tickets, SelfPlayConfig(repeat_in_batch=mode), RewardConfig(**rewards))
    assert [t.id for t in after] == [t.id for t in tickets]
    for old, new in zip(tickets, after, strict=True):
        assert new.attempts is old.attempts  # attempts on a repeated problem still train the solver
        assert (new.problem, new.proposed, new.solve_rate) == (old.problem, old.proposed, old.solve_rate)
    return [(t.proposal.verdict, t.proposal.reward) for t in after if t.proposal is not None]


VALID, REPEAT, INVALID = (Verdict.VALID, 0.5), (Verdict.REPEAT, -0.5), (Verdict.INVALID, -0.5)


def test_allowed_repeats_change_nothing():
    assert judged(closed(A, None, A, B), "allow") == [VALID, INVALID, VALID, VALID]


def test_every_copy_but_the_first_is_invalid_in_ticket_order():
    assert judged(closed(A, None, B, A, B, A), "invalid") == [VALID, INVALID, VALID, REPEAT, REPEAT, REPEAT]
    assert judged(closed(A, A), "invalid", invalid=-3) == [VALID, (Verdict.REPEAT, -3)]


def test_a_repeat_still_pays_for_its_length():
    assert judged(closed(A, A), "invalid", length_penalty=0.25)[1] == (Verdict.REPEAT, -0.5 - 2 * 0.25)


def test_all_copies_pay_the_penalty_and_stay_valid():
    # Four valid: of the other three of each A one is the same, of those of B and C none.
    assert judged(closed(A, None, A, B, C), "penalise", repeat_penalty=0.75) == [
        (Verdict.VALID, 0.25),
        INVALID,
        (Verdict.VALID, 0.25),
        VALID,
        VALID,
    ]
    assert judged(closed(A), "penalise") == [VALID]  # alone
    assert judged(closed(A, A, A), "penalise") == [(Verdict.VALID, -0.5)] * 3


@pytest.mark.parametrize("mode", ["penalise", "invalid"])
def test_the_same_key_of_another_task_is_no_repeat(mode):
    assert judged(closed(*(make_problem("a", task) for task in Task)), mode) == [VALID] * 3


def test_rare_answers_earn_the_bonus_among_what_stays_valid():
    # Answers of the valid ones: 1 (A), 1 (B), 2 (C); the second A is a repeat and counts for nothing.
    rewards = judged(closed(A, B, None, C, A), "invalid", answer_diversity_bonus=3)
    assert rewards == [
        (Verdict.VALID, 0.5 + 3 * (1 - 2 / 3)),
        (Verdict.VALID, 0.5 + 3 * (1 - 2 / 3)),
        INVALID,
        (Verdict.VALID, 0.5 + 3 * (1 - 1 / 3)),
        REPEAT,
    ]


def test_an_answer_is_compared_within_its_task():
    tickets = closed(A, make_problem("a", Task.ABDUCTION, answer="2"), make_problem("b", Task.ABDUCTION, answer="1"))
    assert judged(tickets, "allow", answer_diversity_bonus=1) == [VALID, (Verdict.VALID, 1.0), (Verdict.VALID, 1.0)]


def test_bonus_and_penalty_add_up_over_all_copies():
    # Shares of answers 1 and 2 among three: 2/3 and 1/3; each A has one copy among two others.
    assert judged(closed(A, A, C), "penalise", answer_diversity_bonus=3, repeat_penalty=1) == [
        (Verdict.VALID, pytest.approx(0.5 + 1 - 0.5)),
        (Verdict.VALID, pytest.approx(0.5 + 1 - 0.5)),
        (Verdict.VALID, pytest.approx(0.5 + 2)),
    ]


def test_buffer_tickets_pass_untouched():
    tickets = [make_closed(make_ticket("buffer", index=i)) for i in range(2)]
    settings = SelfPlayConfig(repeat_in_batch="invalid"), RewardConfig(answer_diversity_bonus=1)
    assert judge_repeats(tickets, *settings) == tuple(tickets)
