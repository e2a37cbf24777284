import random
from dataclasses import replace

import pytest
from factories import make_closed, make_episode

from learner.collector import Collector, TokenLimits
from learner.problem_buffer import ProblemBuffer
from shared.config import RewardConfig, SelfPlayConfig
from shared.episodes import Problem, Role, Task, Ticket, TicketId, Verdict
from shared.errors import MessageError


def collector(seeds, seed=0, **selfplay) -> Collector:
    settings = {"proposals_per_task": 2, "buffer_problems_per_task": 1, "attempts": 2, "references": 3} | selfplay
    return Collector(
        ProblemBuffer(seeds, capacity=50, seed=seed),
        tasks=list(Task),
        selfplay=SelfPlayConfig(seed_problems_per_task=5, buffer_capacity=50, **settings),
        rewards=RewardConfig(),
        limits=TokenLimits(prompt=10, response=10, vocabulary=100),
        seed=seed,
    )


def new_problem(ticket: Ticket, name: str = "new") -> Problem:
    return Problem(ticket.task, f"content {name}", f"key {name}")


def test_a_batch_holds_the_configured_tickets(seeds):
    tickets = collector(seeds, max_staleness=0).open_through(0, last_batch=9)
    assert [t.id for t in tickets] == [TicketId(0, 0, i) for i in range(9)]
    for task in Task:
        kinds = [t.kind for t in tickets if t.task is task]
        assert sorted(kinds) == ["buffer", "proposal", "proposal"]
    for ticket in tickets:
        assert ticket.problem.task is ticket.task
        assert len({r.key for r in ticket.references}) == (3 if ticket.kind == "proposal" else 0)
    assert len({t.seed for t in tickets}) == 9


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_staleness_bounds_what_may_be_opened(seeds, staleness):
    opening = collector(seeds, max_staleness=staleness)
    opened = {t.id.batch for t in opening.open_through(0, last_batch=9)}
    assert opened == set(range(staleness + 1))
    assert {t.id.batch for t in opening.open_through(3, last_batch=9)} == set(range(staleness + 1, 4 + staleness))
    tickets = opening.open_through(9, last_batch=9)
    assert {t.id.batch for t in tickets} == set(range(4 + staleness, 10))
    assert all(t.min_version == t.id.batch - staleness for t in tickets)


def test_the_same_seed_issues_the_same_tickets(seeds):
    assert collector(seeds, 1).open_through(0, 9) == collector(seeds, 1).open_through(0, 9)
    assert collector(seeds, 1).open_through(0, 9) != collector(seeds, 2).open_through(0, 9)


def test_release_is_in_ticket_order_whatever_the_order_of_arrival(seeds):
    results = []
    for order in (0, 1):
        collecting = collector(seeds, max_staleness=0)
        tickets = collecting.open_through(0, 9)
        closed = [make_closed(t, proposed=new_problem(t) if t.id.index in (0, 3) else None) for t in tickets]
        random.Random(order).shuffle(closed)
        for ticket in closed:
            assert not collecting.is_complete(0)
            collecting.close(ticket)
        batch = collecting.release(0)
        assert [t.id.index for t in batch.tickets] == list(range(9))
        results.append([(e.verdict, e.reward) for e in batch.episodes])
    assert results[0] == results[1]


def test_repeats_are_judged_in_ticket_order(seeds):
    collecting = collector(seeds, max_staleness=0)
    tickets = collecting.open_through(0, 9)
    first, second = [t for t in tickets if t.task is Task.DEDUCTION and t.kind == "proposal"]
    for ticket in reversed(tickets):
        proposed = new_problem(ticket) if ticket in (first, second) else None
        collecting.close(make_closed(ticket, proposed=proposed))
    batch = collecting.release(0)
    kept, repeat = batch.tickets[first.id.index], batch.tickets[second.id.index]
    assert kept.proposal is not None
    assert (kept.proposal.verdict, kept.proposal.reward) == (Verdict.VALID, 0.5)
    assert repeat.proposal is not None
    assert (repeat.proposal.verdict, repeat.proposal.reward) == (Verdict.REPEAT, -0.5)
    assert len(repeat.attempts) == 2  # attempts on a repeated problem still train the solver


def test_repeats_may_be_allowed(seeds):
    collecting = collector(seeds, max_staleness=0, repeat_in_batch="allow")
    for ticket in collecting.open_through(0, 9):
        collecting.close(make_closed(ticket, proposed=new_problem(ticket) if ticket.kind == "proposal" else None))
    proposals = [t.proposal for t in collecting.release(0).tickets if t.proposal is not None]
    assert {p.verdict for p in proposals} == {Verdict.VALID}


def test_the_same_key_of_another_task_is_no_repeat(seeds):
    collecting = collector(seeds, max_staleness=0, proposals_per_task=1)
    for ticket in collecting.open_through(0, 9):
        collecting.close(make_closed(ticket, proposed=new_problem(ticket) if ticket.kind == "proposal" else None))
    proposals = [t.proposal for t in collecting.release(0).tickets if t.proposal is not None]
    assert {p.verdict for p in proposals} == {Verdict.VALID}


def test_valid_new_problems_enter_the_buffer(seeds):
    buffer = ProblemBuffer(seeds, capacity=50, seed=0)
    collecting = collector(seeds, max_staleness=0)
    collecting._buffer = buffer
    for ticket in collecting.open_through(0, 9):
        collecting.close(make_closed(ticket, proposed=new_problem(ticket) if ticket.kind == "proposal" else None))
    collecting.release(0)
    assert [buffer.size(task) for task in Task] == [6, 6, 6]


def test_a_ticket_closed_twice_counts_once(seeds):
    collecting = collector(seeds, max_staleness=0)
    ticket = collecting.open_through(0, 9)[0]
    collecting.close(make_closed(ticket, correct=1))
    collecting.close(make_closed(ticket, correct=2))
    assert collecting.progress(0) == (1, 9)


def test_what_does_not_fit_the_ticket_is_refused(seeds):
    collecting = collector(seeds, max_staleness=1)
    tickets = collecting.open_through(1, 9)
    proposal_ticket = next(t for t in tickets if t.kind == "proposal" and t.id.batch == 1)
    buffer_ticket = next(t for t in tickets if t.kind == "buffer")
    late_ticket = next(t for t in tickets if t.id.batch == 2 and t.kind == "buffer")
    good = make_closed(proposal_ticket)
    wrong_role = replace(good, attempts=(make_episode(Role.PROPOSER),) * 2)
    for bad in (
        replace(good, id=TicketId(1, 1, 0)),
        replace(good, id=TicketId(0, 5, 0)),
        replace(good, id=TicketId(0, 1, 900)),
        replace(good, proposal=None),
        replace(good, proposed=new_problem(proposal_ticket)),
        replace(good, problem=new_problem(proposal_ticket)),
        replace(good, attempts=good.attempts[:1]),
        wrong_role,
        make_closed(buffer_ticket, version=buffer_ticket.id.batch + 1),
        make_closed(late_ticket, version=late_ticket.min_version - 1),
        replace(make_closed(buffer_ticket), proposal=make_episode(Role.PROPOSER)),
        replace(good, attempts=(make_episode(task=Task.INDUCTION),) * 2),
        replace(good, attempts=(make_episode(verdict=Verdict.VALID),) * 2),
        replace(good, attempts=(make_episode(reward=1e300),) * 2),
        replace(good, attempts=(make_episode(response=[100]),) * 2),
        replace(good, attempts=(make_episode(prompt=[2**31 - 1]),) * 2),
        replace(good, attempts=(make_episode(response=[1] * 11),) * 2),
        replace(good, attempts=(make_episode(prompt=[1] * 11),) * 2),
        make_closed(proposal_ticket, proposed=Problem(Task.INDUCTION, "c", "k")),
        make_closed(proposal_ticket, proposed=Problem(proposal_ticket.task, "c" * 10**6, "k")),
    ):
        with pytest.raises(MessageError):
            collecting.close(bad)
    collecting.close(good)


def test_a_ticket_of_a_released_batch_is_dropped_not_refused(seeds):
    collecting = collector(seeds, max_staleness=0)
    tickets = collecting.open_through(0, 9)
    for ticket in tickets:
        collecting.close(make_closed(ticket))
    collecting.release(0)
    collecting.close(make_closed(tickets[0]))


def test_an_unfinished_batch_is_not_released(seeds):
    collecting = collector(seeds, max_staleness=0)
    collecting.open_through(0, 9)
    with pytest.raises(RuntimeError):
        collecting.release(0)
