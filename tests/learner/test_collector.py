import random

import pytest
from factories import make_closed, make_episode, make_problem
from msgspec.structs import replace

from learner.collector import Collector
from learner.problem_buffer import ProblemBuffer
from learner.spec import SeedStage
from learner.ticket_check import TokenLimits
from shared.config import RewardConfig, SelfPlayConfig
from shared.episodes import ClosedTicket, Episode, Problem, Role, Task, Ticket, TicketId, Verdict
from shared.errors import MessageError


def collector(seeds, seed=0, place=None, rewards=None, buffer=None, **selfplay) -> Collector:
    settings = {"proposals_per_task": 2, "buffer_problems_per_task": 1, "attempts": 2, "references": 3} | selfplay
    return Collector(
        buffer or ProblemBuffer(seeds, capacity=50, seed=seed),
        tasks=list(Task),
        selfplay=SelfPlayConfig(seed_problems_per_task=5, buffer_capacity=50, **settings),
        rewards=rewards or RewardConfig(),
        limits=TokenLimits(prompt=10, response=10, vocabulary=100),
        seed=seed,
        **(place or {}),
    )


def new_problem(ticket: Ticket, name: str = "new") -> Problem:
    return make_problem(f"key {name}", ticket.task)


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


@pytest.mark.parametrize(
    ("mode", "verdict", "rewards"),
    [
        ("allow", Verdict.VALID, [0.5, 0.5]),
        ("invalid", Verdict.REPEAT, [0.5, -0.5]),
        ("penalise", Verdict.VALID, [-0.25, -0.25]),
    ],
)
def test_repeats_are_judged_in_ticket_order_on_release(seeds, mode, verdict, rewards):
    collecting = collector(seeds, max_staleness=0, repeat_in_batch=mode, rewards=RewardConfig(repeat_penalty=0.75))
    tickets = collecting.open_through(0, 9)
    first, second = [t for t in tickets if t.task is Task.DEDUCTION and t.kind == "proposal"]
    for ticket in reversed(tickets):
        proposed = new_problem(ticket) if ticket in (first, second) else None
        collecting.close(make_closed(ticket, proposed=proposed))
    batch = collecting.release(0)
    kept, repeat = (batch.tickets[t.id.index] for t in (first, second))
    assert [t.proposal.verdict for t in (kept, repeat)] == [Verdict.VALID, verdict]
    assert [t.proposal.reward for t in (kept, repeat)] == rewards
    assert len(repeat.attempts) == 2


def test_a_released_batch_knows_its_tickets_as_they_were_issued(seeds):
    collecting = collector(seeds, max_staleness=0)
    tickets = collecting.open_through(0, 9)
    for ticket in reversed(tickets):
        collecting.close(make_closed(ticket))
    assert collecting.release(0).issued == tuple(tickets)


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
    shown = proposal_ticket.references[1]

    def proposing(problem: Problem, **changes: str) -> ClosedTicket:
        return make_closed(proposal_ticket, proposed=replace(problem, **changes))

    def attempting(*attempts: Episode) -> ClosedTicket:
        return replace(good, attempts=attempts, solve_rate=1.0)

    def attempts(**changes) -> ClosedTicket:
        return attempting(make_episode(**changes), make_episode())

    for bad, reason in (
        (replace(good, id=TicketId(1, 1, 0)), "not open here"),
        (replace(good, id=TicketId(0, 5, 0)), "not open here"),
        (replace(good, id=TicketId(0, 1, 900)), "not open here"),
        (replace(good, proposal=None), "wrong proposal"),
        (replace(good, proposed=new_problem(proposal_ticket)), "wrong proposal"),
        (replace(make_closed(buffer_ticket), proposal=make_episode(Role.PROPOSER)), "wrong proposal"),
        (replace(good, proposal=make_episode(verdict=Verdict.WRONG)), "roles mixed up"),
        (replace(good, proposal=replace(good.proposal, verdict=Verdict.REPEAT)), "judged repeat"),
        (proposing(shown), "one of its references"),
        (proposing(shown, content="other"), "one of its references"),
        (replace(good, problem=new_problem(proposal_ticket)), "another problem"),
        (replace(good, attempts=good.attempts[:1]), "attempts: 1"),
        (replace(good, attempts=good.attempts * 2), "attempts: 4"),
        (replace(good, solve_rate=1.0), r"1\.0 where the attempts come to 0\.5"),
        (replace(good, solve_rate=0.5 + 1e-5), "where the attempts come to"),
        (replace(good, solve_rate=float("nan")), "solve rate: nan"),
        (attempts(role=Role.PROPOSER), "roles mixed up"),
        (attempts(task=Task.INDUCTION), "another task"),
        (proposing(new_problem(proposal_ticket), task=Task.INDUCTION), "another task"),
        (proposing(new_problem(proposal_ticket), content="c" * 10**6), "endless"),
        (proposing(new_problem(proposal_ticket), key="c" * 10**6), "endless"),
        (proposing(new_problem(proposal_ticket), family="c" * 10**6), "endless"),
        (proposing(new_problem(proposal_ticket), answer="c" * 10**6), "endless"),
        (replace(attempts(verdict=Verdict.VALID), solve_rate=0.5), "judged valid"),
        (attempts(reward=1e300), "reward"),
        (attempts(reward=float("nan")), "reward"),
        (attempts(response=[1] * 11), "longer"),
        (attempts(prompt=[1] * 11), "longer"),
        (make_closed(buffer_ticket, version=buffer_ticket.id.batch + 1), "version 1 in a ticket of batch 0"),
        (make_closed(late_ticket, version=late_ticket.min_version - 1), "version 0 in a ticket of batch 2"),
    ):
        with pytest.raises(MessageError, match=reason):
            collecting.close(bad)
    assert collecting.progress(1) == (0, 9)
    collecting.close(replace(good, solve_rate=0.5 + 1e-7))


def test_a_held_out_proposal_is_taken_with_attempts_on_the_fallback(seeds):
    collecting = collector(seeds, max_staleness=0)
    ticket = collecting.open_through(0, 9)[0]
    closed = make_closed(ticket)
    collecting.close(replace(closed, proposal=replace(closed.proposal, verdict=Verdict.HELD_OUT, reward=0.0)))
    assert collecting.progress(0) == (1, 9)


def test_with_separate_samples_the_solve_rate_of_a_valid_proposal_is_the_workers_word(seeds):
    collecting = collector(seeds, max_staleness=0, solver_samples="separate", attempts=8)
    first, second = [t for t in collecting.open_through(0, 9) if t.task is Task.DEDUCTION and t.kind == "proposal"]
    valid = make_closed(first, attempts=1, proposed=new_problem(first))
    fallback = make_closed(second, attempts=1)
    for bad, reason in (
        (replace(valid, solve_rate=1.1), "solve rate: 1.1"),
        (replace(valid, solve_rate=float("nan")), "solve rate: nan"),
        (make_closed(first, attempts=8, proposed=new_problem(first)), "attempts: 8"),
        (replace(fallback, solve_rate=0.25), "attempts come to 1.0"),  # nothing but its one sample was made
    ):
        with pytest.raises(MessageError, match=reason):
            collecting.close(bad)
    collecting.close(replace(valid, solve_rate=0.25))
    collecting.close(fallback)
    assert collecting.progress(0) == (2, 9)


def test_later_seeds_enter_the_buffer_before_the_tickets_of_their_batch(seeds):
    later = {task: [make_problem(f"later {i}", task) for i in range(200)] for task in Task}
    collecting = collector(seeds, place={"stages": [SeedStage(0, seeds), SeedStage(2, later)]}, max_staleness=0)
    reference = collector(seeds, max_staleness=0)
    for batch in range(4):
        tickets = collecting.open_through(batch, 9)
        assert (tickets == reference.open_through(batch, 9)) == (batch < 2)
        shown = {p.key.split()[0] for t in tickets for p in (*t.references, t.problem)}
        assert ("later" in shown) == (batch >= 2)


def test_a_resumed_run_goes_on_at_its_batch_in_its_lineage(seeds):
    collecting = collector(seeds, place={"first_batch": 5, "lineage": 2}, max_staleness=1)
    tickets = collecting.open_through(5, last_batch=9)
    assert {(t.id.lineage, t.id.batch, t.min_version) for t in tickets} == {(2, 5, 4), (2, 6, 5)}
    assert collecting.lineage == 2
    assert tickets[0].seed == collector(seeds, place={"first_batch": 5}).open_through(5, 5)[0].seed
    for ticket in tickets:
        collecting.close(make_closed(ticket))
    assert collecting.release(5).number == 5


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
