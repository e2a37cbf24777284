"""The pool over real sockets, with workers that speak the protocol but have no engine."""

import errno
import os
import time

import pytest
from factories import make_closed
from fake_worker import LINEAGE, Clock, FakeWorker, make_pool
from msgspec.structs import replace
from waiting import until

from learner.journal import Journal, Took
from learner.worker_pool import WorkerPool
from shared import messages as msg
from shared.episodes import TicketId
from shared.errors import JournalError, StreamTimeoutError, WeightSyncError


@pytest.fixture
def pools(tmp_path, seeds):
    made: list[WorkerPool] = []

    def make(**overrides) -> tuple[WorkerPool, str]:
        endpoint = f"ipc://{tmp_path}/pool{len(made)}"
        made.append(make_pool(endpoint, seeds, **overrides))
        return made[-1], endpoint

    yield make
    for pool in made:
        pool.close()


def joined(pool: WorkerPool, endpoint: str, name: str = "rollout-0", version: int = 0) -> FakeWorker:
    """One that has been shown to have the weights of a version."""
    worker = FakeWorker(endpoint, name).hello().welcomed()
    pool.prove(pool.newcomers(), version)
    assert worker.get(msg.ProbePassed) == msg.ProbePassed(version)
    return worker


def test_tickets_out_closed_tickets_in_acknowledged(pools):
    pool, endpoint = pools()
    worker = joined(pool, endpoint)
    pool.open_through(0, 9)
    tickets = worker.get(msg.Work).tickets
    assert len(tickets) == 6
    for ticket in reversed(tickets):
        worker.close_ticket(ticket)
        worker.get(msg.Ack)
    batch = pool.wait_for_batch(0)
    assert [t.id for t in batch.tickets] == [t.id for t in tickets]
    assert pool.rejected == {}
    worker.leave()


def test_credit_bounds_open_tickets_and_work_is_shared(pools):
    pool, endpoint = pools(**{"rollout.max_open_tickets": 2})
    workers = [joined(pool, endpoint, f"rollout-{i}") for i in range(2)]
    pool.open_through(0, 9)
    held = {w.name: [] for w in workers}
    for worker in workers:
        while len(held[worker.name]) < 2:
            held[worker.name] += worker.get(msg.Work).tickets
    time.sleep(0.1)
    assert all(w.inbox.empty() for w in workers)  # two each, two still waiting
    workers[0].close_ticket(held["rollout-0"][0])
    workers[0].get(msg.Ack)
    assert len(workers[0].get(msg.Work).tickets) == 1
    assert workers[1].inbox.empty()
    for worker in workers:
        worker.leave()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": 3}, "another protocol version: 3"),
        ({"model": "x"}, "another model"),
        ({"tokenizer": "x"}, "another tokenizer"),
        ({"environment": "x"}, "another environment"),
    ],
)
def test_a_worker_that_does_not_match_is_refused_with_the_reason(pools, change, reason):
    pool, endpoint = pools()
    worker = FakeWorker(endpoint, "rollout-0").hello(**change)
    assert reason in worker.get(msg.Refused).reason
    with pytest.raises(StreamTimeoutError, match=r"0 of 1 rollout workers connected \(rollout.start_timeout_s\)"):
        pool.wait_for_workers(1, 0.05)
    worker.leave()


def test_who_is_not_known_is_asked_to_greet_and_what_it_said_is_counted(pools):
    pool, endpoint = pools()
    stranger = FakeWorker(endpoint, "rollout-0")
    for message in (msg.Failed("boo"), msg.Alive(), msg.Alive()):
        stranger.send(message)
    stranger.get(msg.Greet)
    until(lambda: sum(pool.rejected.values()) == 3)
    assert stranger.inbox.empty()  # once is enough: on one connection nothing is lost
    assert pool.rejected == {"Failed of a worker that is not known": 1, "Alive of a worker that is not known": 2}
    pool.open_through(0, 9)  # and it has not failed the run
    stranger.leave()


def test_a_forged_ticket_is_refused_and_the_batch_is_unharmed(pools):
    pool, endpoint = pools()
    worker = joined(pool, endpoint, version=7)
    pool.open_through(0, 9)
    tickets = worker.get(msg.Work).tickets
    worker.close_ticket(tickets[0], version=7)
    assert "version 7 in a ticket of batch 0" in worker.get(msg.Refused).reason
    for ticket in tickets:
        worker.close_ticket(ticket)
    assert len(pool.wait_for_batch(0).tickets) == 6
    assert sum(pool.rejected.values()) == 1
    worker.leave()


def test_a_bad_ticket_in_a_message_costs_only_itself(pools, tmp_path):
    journal = Journal(tmp_path / "journal")
    pool, endpoint = pools(journal=journal, lineage=LINEAGE)
    worker = joined(pool, endpoint)
    pool.open_through(0, 9)
    tickets = worker.get(msg.Work).tickets
    good = [make_closed(ticket) for ticket in tickets]
    forged = replace(good[1], solve_rate=1.0)
    old = replace(good[0], id=TicketId(LINEAGE - 1, 0, 0))
    worker.close_tickets(good[0], forged, good[2], good[0], old, good[3])
    assert "where the attempts come to" in worker.get(msg.Refused).reason
    assert worker.get(msg.Ack).sequences == (0, 2, 3, 5)
    assert pool._collector.progress(0) == (3, 6)
    assert pool.rejected == {
        "a solve rate that is not the attempts'": 1,
        "a closed ticket of an earlier lineage": 1,
    }
    taken = [record for _, record in journal.records() if isinstance(record, Took)]
    assert [(record.id, record.worker) for record in taken] == [(good[i].id, "rollout-0") for i in (0, 2, 3)]
    assert [record.closed(100).problem for record in taken] == [good[i].problem for i in (0, 2, 3)]
    worker.close_tickets(good[1], good[4], good[5])
    assert worker.get(msg.Ack).sequences == (6, 7, 8)
    batch = pool.wait_for_batch(0)
    assert [ticket.id for ticket in batch.tickets] == [ticket.id for ticket in tickets]
    cost = pool.stream_cost()
    assert (cost.tickets, cost.messages) == (9, 2)
    assert cost.bytes > 9 * 100
    assert cost.cpu_s > 0
    assert (pool.stream_cost().tickets, pool.stream_cost().bytes) == (0, 0)
    worker.leave()


def test_nothing_of_a_message_is_acknowledged_or_taken_that_could_not_be_written(pools, tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal")
    pool, endpoint = pools(journal=journal, lineage=LINEAGE)
    worker = joined(pool, endpoint)
    pool.open_through(0, 9)
    tickets = worker.get(msg.Work).tickets
    worker.close_tickets(*map(make_closed, tickets[:2]))
    assert worker.get(msg.Ack).sequences == (0, 1)
    written = os.pwritev
    calls = []

    def full(file, pieces, offset):
        """A disk that takes a part, in the middle of the second ticket, and then no more."""
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "no space")
        return written(file, [*pieces[:4], bytes(pieces[4])[:3]], offset)

    monkeypatch.setattr("learner.journal.os.pwritev", full)
    end = journal.end
    worker.close_tickets(*map(make_closed, tickets[2:]))
    with pytest.raises(JournalError, match="cannot be written"):
        pool.wait_for_batch(0)
    assert worker.inbox.empty()
    assert len(calls) == 2
    assert pool._collector.progress(0) == (2, 6)
    assert journal.end == end == (tmp_path / "journal").stat().st_size
    worker.leave()


def test_a_ticket_sampled_by_weights_that_are_not_proven_is_refused(pools):
    pool, endpoint = pools(**{"selfplay.max_staleness": 1})
    worker = joined(pool, endpoint)
    pool.open_through(0, 9)
    ticket = next(t for t in worker.get(msg.Work).tickets if t.id.batch == 1)
    worker.close_ticket(ticket, version=1)
    assert "not been shown to have: version 1" in worker.get(msg.Refused).reason
    pool.prove(pool.members(), 1)
    worker.get(msg.ProbePassed)
    worker.close_ticket(ticket, version=1)
    worker.get(msg.Ack)
    worker.leave()


def test_a_ticket_that_another_worker_was_given_is_refused(pools):
    pool, endpoint = pools()
    first, second = (joined(pool, endpoint, f"rollout-{i}") for i in range(2))
    pool.open_through(0, 9)
    (ticket, *_), (others, *_) = first.get(msg.Work).tickets, second.get(msg.Work).tickets
    first.close_ticket(others)
    assert "not given" in first.get(msg.Refused).reason
    first.close_ticket(ticket)
    first.close_ticket(ticket, correct=2)  # sent again: acknowledged, and dropped
    assert first.acknowledged(2) == [1, 2]
    first.leave()
    second.leave()


def test_a_batch_that_stalls_says_how_far_it_came(pools):
    pool, endpoint = pools(**{"stream.batch_timeout_s": 0.3})
    worker = joined(pool, endpoint)
    pool.open_through(0, 9)
    worker.close_ticket(worker.get(msg.Work).tickets[0])
    worker.get(msg.Ack)
    with pytest.raises(StreamTimeoutError, match=r"1 of 6 tickets of batch 0 .*\(stream.batch_timeout_s\)"):
        pool.wait_for_batch(0)
    worker.leave()


def test_a_wait_in_vain_names_why_the_last_worker_left(pools):
    pool, endpoint = pools(**{"stream.batch_timeout_s": 0.3})
    worker = joined(pool, endpoint)
    pool.open_through(0, 9)
    worker.send(msg.Failed("the engine is dead"))
    until(lambda: not pool.members())
    with pytest.raises(StreamTimeoutError, match=r"0 of 6 tickets.*rollout-0: the engine is dead"):
        pool.wait_for_batch(0)
    worker.leave()


def test_calls_run_side_by_side_and_return_the_answers(pools):
    pool, endpoint = pools()
    workers = [joined(pool, endpoint, f"rollout-{i}") for i in range(2)]
    call = pool.start_call(dict.fromkeys(pool.members(), msg.StartUpdate()))
    for worker in reversed(workers):
        assert worker.answer(msg.Done()) == msg.StartUpdate()
    results = pool.finish_call(call, 60)
    assert {member.name: result for member, result in results.items()} == dict.fromkeys(
        ("rollout-0", "rollout-1"), msg.Done()
    )
    for worker in workers:
        worker.leave()


def test_who_fails_a_call_or_leaves_it_unanswered_is_sent_away(pools):
    pool, endpoint = pools()
    workers = [joined(pool, endpoint, f"rollout-{i}") for i in range(3)]
    call = pool.start_call(dict.fromkeys(pool.members(), msg.StartUpdate()))
    workers[0].answer(msg.Done())
    workers[1].answer(msg.CallFailed("no room"))
    until(lambda: len(pool._calls[call].results) == 2)
    assert [member.name for member in pool.finish_call(call, 0)] == ["rollout-0"]
    assert workers[1].get(msg.Refused).reason == "StartUpdate: no room"
    workers[2].get(msg.Call)
    assert "not answered within 0 s" in workers[2].get(msg.Refused).reason
    assert [member.name for member in pool.members()] == ["rollout-0"]
    workers[2].send(msg.Reply(call, msg.Done()))  # too late: it is not trusted any more
    workers[2].get(msg.Greet)
    assert pool.turnover().workers_lost == 2
    for worker in workers:
        worker.leave()


def test_a_reply_to_a_call_of_another_learner_counts_for_nothing(pools):
    pool, endpoint = pools()
    worker = joined(pool, endpoint)
    call = pool.start_call(dict.fromkeys(pool.members(), msg.StartUpdate()))
    worker.get(msg.Call)
    worker.send(msg.Reply(0, msg.CallFailed("of long ago")))
    worker.send(msg.Reply(call, msg.Done()))
    assert len(pool.finish_call(call, 60)) == 1
    assert pool.rejected == {"a reply to no call": 1}
    worker.leave()


def test_who_leaves_during_a_call_is_not_waited_for(pools):
    pool, endpoint = pools()
    workers = [joined(pool, endpoint, f"rollout-{i}") for i in range(2)]
    call = pool.start_call(dict.fromkeys(pool.members(), msg.StartUpdate()))
    workers[0].answer(msg.Done())
    workers[1].send(msg.Failed("out of memory"))
    assert [member.name for member in pool.finish_call(call, 1000)] == ["rollout-0"]
    for worker in workers:
        worker.leave()


def test_weights_never_go_backwards(pools):
    pool, endpoint = pools()
    worker = joined(pool, endpoint, version=3)
    with pytest.raises(WeightSyncError, match="version 2 for rollout-0, which already has 3"):
        pool.prove(pool.members(), 2)
    pool.prove(pool.members(), 3)
    worker.leave()


def test_workers_are_sent_home_only_when_the_run_is_over(pools):
    pool, endpoint = pools()
    worker = joined(pool, endpoint)
    pool.send_home()
    worker.get(msg.Bye)
    worker.leave()


def test_who_waits_shows_life_and_who_does_not_shows_none(pools, monkeypatch):
    monkeypatch.setattr("learner.worker_pool.BEAT_S", 0.02)
    clock = Clock()
    pool, endpoint = pools(clock=clock, **{"stream.batch_timeout_s": 5000})
    beats: list[float] = []

    def beat() -> None:
        beats.append(clock())
        clock.pass_by(1000, pool)

    pool._beat = beat
    worker = joined(pool, endpoint)
    pool.open_through(0, 9)
    assert beats == []
    with pytest.raises(StreamTimeoutError):
        pool.wait_for_batch(0)
    assert beats == [0, 1000, 2000, 3000, 4000]
    time.sleep(0.2)
    assert len(beats) == 5
    worker.leave()
