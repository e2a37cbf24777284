"""Workers that come late, go, and come back; a learner that comes back. Over real sockets, without engines."""

import pytest
from fake_worker import LINEAGE, Clock, FakeWorker, make_pool
from waiting import until

from learner.worker_pool import WorkerPool
from shared import messages as msg
from shared.episodes import Ticket
from shared.errors import MessageError


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def endpoint(tmp_path) -> str:
    return f"ipc://{tmp_path}/stream"


@pytest.fixture
def pool(endpoint, seeds, clock):
    pool = make_pool(endpoint, seeds, clock=clock)
    yield pool
    pool.close()


@pytest.fixture
def workers(endpoint):
    """Makes workers that have been welcomed; they leave at the end."""
    made: list[FakeWorker] = []

    def make(name: str = "rollout-0", script=None) -> FakeWorker:
        made.append(FakeWorker(endpoint, name, script).hello())
        return made[-1] if script else made[-1].welcomed()

    yield make
    for worker in made:
        worker.leave()


def prove(pool: WorkerPool, *workers: FakeWorker, version: int = 0) -> None:
    pool.prove([member for member in pool.members() if member.name in {w.name for w in workers}], version)
    for worker in workers:
        worker.get(msg.ProbePassed)


def work_of(worker: FakeWorker, count: int) -> list[Ticket]:
    tickets: list[Ticket] = []
    while len(tickets) < count:
        tickets += worker.get(msg.Work).tickets
    return tickets


def close_all(worker: FakeWorker, tickets: list[Ticket]) -> None:
    for ticket in tickets:
        worker.close_ticket(ticket)


def test_a_newcomer_gets_no_ticket_before_its_probe_has_passed(pool, workers):
    first = workers()
    prove(pool, first)
    pool.open_through(0, 9)
    assert len(work_of(first, 6)) == 6
    late = workers("rollout-1")
    assert [member.name for member in pool.newcomers()] == ["rollout-1"]
    assert [member.name for member in pool.ready()] == ["rollout-0"]
    first.send(msg.Failed("the engine is dead"))
    until(lambda: len(pool.members()) == 1)
    assert late.inbox.empty()  # though six tickets wait
    prove(pool, late)
    assert len(work_of(late, 6)) == 6


def test_a_newcomer_that_closes_tickets_nevertheless_is_refused(pool, workers):
    first = workers()
    prove(pool, first)
    pool.open_through(0, 9)
    ticket = work_of(first, 6)[0]
    late = workers("rollout-1")
    late.close_ticket(ticket)
    assert "not given" in late.get(msg.Refused).reason


@pytest.mark.parametrize("end", ["failed", "gone", "silent", "anew"])
def test_what_a_lost_worker_had_open_is_issued_again_and_the_batch_completes(pool, workers, clock, end):
    lost, other = workers(), workers("rollout-1")
    prove(pool, lost, other)
    pool.open_through(0, 9)
    mine, others = work_of(lost, 3), work_of(other, 3)
    close_all(lost, mine[:1])
    lost.get(msg.Ack)
    if end == "failed":
        lost.send(msg.Failed("the engine is dead"))
    elif end == "gone":
        lost.leave()
        clock.pass_by(20, pool)
        until(lambda: pool._sweep() or any(w.gone is not None for w in pool._workers.values()))
        pool._sweep()
        assert len(pool.members()) == 2  # it is late, and cannot be reached, but may come back
        clock.pass_by(5, pool)
        pool._sweep()
    elif end == "silent":
        for _ in range(4):
            clock.pass_by(20, pool)
            other.send(msg.Alive())
            until(lambda: max(w.heard for w in pool._workers.values()) == clock())
            pool._sweep()
    else:
        lost.hello().welcomed()
    again = work_of(other, 2)
    assert [t.id for t in again] == [t.id for t in mine[1:]]
    assert not {t.seed for t in again} & {t.seed for t in mine}
    close_all(other, others + again)
    batch = pool.wait_for_batch(0)
    assert sorted(t.id.index for t in batch.tickets) == list(range(6))
    assert {t.seed for t in again} <= {t.seed for t in batch.issued}
    turnover = pool.turnover()
    assert (turnover.workers_joined, turnover.workers_lost, turnover.tickets_reissued) == (2, 1, 2)
    assert pool.turnover().tickets_reissued == 0


def test_issued_again_first_and_with_seeds_that_can_be_told_in_advance(tmp_path, seeds):
    def seeds_of_reissues(name: str) -> list[int]:
        endpoint = f"ipc://{tmp_path}/{name}"
        pool = make_pool(endpoint, seeds, **{"rollout.max_open_tickets": 2})
        issued: list[Ticket] = []
        for attempt in range(3):
            worker = FakeWorker(endpoint, "rollout-0").hello().welcomed()
            pool.prove(pool.newcomers(), 0)
            worker.get(msg.ProbePassed)
            if attempt == 0:
                pool.open_through(0, 9)
            issued += work_of(worker, 2)
            worker.send(msg.Failed("again"))
            until(lambda: not pool.members())
            worker.leave()
        pool.close()
        assert [t.id.index for t in issued] == [0, 1] * 3
        return [t.seed for t in issued]

    first, second = seeds_of_reissues("a"), seeds_of_reissues("b")
    assert first == second
    assert len(set(first)) == 6


def test_what_the_worker_before_a_new_incarnation_still_says_is_dropped(pool, endpoint, workers):
    old = workers()
    prove(pool, old)
    pool.open_through(0, 9)
    mine = work_of(old, 6)
    new = workers("rollout-0")
    prove(pool, new)
    again = work_of(new, 6)
    old.close_ticket(mine[0])
    old.get(msg.Greet)
    close_all(new, again)
    assert len(pool.wait_for_batch(0).tickets) == 6
    assert pool.rejected == {"Closed of a worker that is not known": 1}
    assert [member.incarnation for member in pool.members()] == [new.incarnation]


def test_a_given_up_worker_comes_back_through_a_greeting(pool, workers, clock):
    worker = workers()
    prove(pool, worker)
    for _ in range(4):
        clock.pass_by(20, pool)
        pool._sweep()
    assert pool.members() == []
    worker.send(msg.Alive())
    worker.get(msg.Greet)
    worker.hello().welcomed()
    assert [member.incarnation for member in pool.newcomers()] == [worker.incarnation]


def test_who_resumes_keeps_its_tickets_and_is_told_again_what_it_may_have_missed(pool, workers, endpoint):
    worker = workers()
    prove(pool, worker, version=0)
    pool.open_through(0, 9)
    mine = work_of(worker, 6)
    close_all(worker, mine[:2])
    worker.acknowledged(2)
    call = pool.start_call(dict.fromkeys(pool.members(), msg.StartUpdate()))
    worker.get(msg.Call)
    again = FakeWorker(endpoint, "rollout-0").hello(incarnation=worker.incarnation, resumes=True)
    assert again.get(msg.Welcome) == msg.Welcome(LINEAGE, worker.incarnation)
    assert again.get(msg.ProbePassed) == msg.ProbePassed(0)
    assert list(again.get(msg.Work).tickets) == mine[2:]
    assert again.answer(msg.Done()) == msg.StartUpdate()
    assert len(pool.finish_call(call, 5)) == 1
    worker.send(msg.Failed("on the connection that it has left"))
    worker.get(msg.Greet)
    close_all(again, mine[1:])
    assert len(pool.wait_for_batch(0).tickets) == 6
    assert pool.turnover().workers_lost == 0
    again.leave()


def test_who_was_sent_away_is_told_so_again_on_another_connection(pool, workers, endpoint):
    worker = workers()
    prove(pool, worker)
    pool.send_away(*pool.members(), "it failed a call")
    again = FakeWorker(endpoint, "rollout-0").hello(incarnation=worker.incarnation, resumes=True)
    assert again.get(msg.Refused).reason == "it failed a call"
    again.leave()


def test_who_did_not_read_for_a_while_is_told_everything_again_or_given_up(pool, workers, clock):
    worker = workers()
    prove(pool, worker)
    pool.open_through(0, 9)
    mine = work_of(worker, 6)
    for _ in range(2):
        (peer,) = pool._workers
        pool._gone(peer)  # a message for it was dropped
        worker.send(msg.Alive())
        worker.get(msg.Greet)
        worker.send(msg.Hello(msg.PROTOCOL_VERSION, "rollout-0", worker.incarnation, "m", "t", "e", resumes=True))
        worker.welcomed()
        worker.get(msg.ProbePassed)
        assert list(worker.get(msg.Work).tickets) == mine
        clock.pass_by(10, pool)
        pool._sweep()
        assert len(pool.members()) == 1
    pool._gone(peer)
    worker.send(msg.Alive())
    worker.get(msg.Greet)
    clock.pass_by(10, pool)
    pool._sweep()
    assert pool.members() == []


def test_nobody_takes_a_workers_place_without_its_incarnation(pool, workers, endpoint):
    worker = workers()
    prove(pool, worker)
    pool.open_through(0, 9)
    mine = work_of(worker, 6)
    thief = FakeWorker(endpoint, "rollout-0").hello(incarnation=worker.incarnation + 1, resumes=True)
    assert thief.get(msg.Forgotten) == msg.Forgotten(worker.incarnation + 1)
    thief = FakeWorker(endpoint, "rollout-1").hello(incarnation=worker.incarnation, resumes=True)
    thief.get(msg.Forgotten)
    close_all(worker, mine)
    assert len(pool.wait_for_batch(0).tickets) == 6
    assert str(worker.incarnation) not in repr(pool.members())
    thief.leave()


def test_a_name_that_would_spoil_the_log_is_refused(pool, endpoint):
    worker = FakeWorker(endpoint, "rollout-0")
    for name in ("", "a" * 101, "rollout-0\n", "a b", "../x"):
        worker.hello(worker=name)
        assert "malformed header" in worker.get(msg.Refused).reason
    assert pool.members() == []
    worker.leave()


def test_a_learner_that_stood_still_itself_gives_nobody_up(pool, workers, clock):
    worker = workers()
    prove(pool, worker)
    clock.pass_by(1000, pool)
    pool._sweep()
    assert len(pool.members()) == 1


def test_waiting_for_a_batch_is_interrupted_by_newcomers(pool, workers):
    first = workers()
    prove(pool, first)
    pool.open_through(0, 9)
    mine = work_of(first, 6)
    brought_up: list[str] = []

    def attend() -> None:
        for member in pool.newcomers():
            brought_up.append(member.name)
            pool.prove([member], 0)

    def script(message: msg.Message) -> None:
        """It does what it is told from the moment at which it is proven."""
        if isinstance(message, msg.Work):
            for ticket in message.tickets:
                late.close_ticket(ticket)

    late = workers("rollout-1", script)
    until(lambda: len(pool.members()) == 2)
    first.send(msg.Failed("the engine is dead"))
    assert [t.id for t in pool.wait_for_batch(0, attend).tickets] == [t.id for t in mine]
    assert brought_up == ["rollout-1"]


def test_a_restarted_learner_finds_its_workers_and_refuses_what_is_of_its_forerunner(endpoint, seeds, workers):
    first = make_pool(endpoint, seeds)
    worker = workers()
    prove(first, worker, version=8)
    first.open_through(0, 9)
    old = work_of(worker, 6)
    first.close()

    second = make_pool(endpoint, seeds, lineage=LINEAGE + 1)
    close_all(worker, old[:2])  # said while nobody listened
    worker.send(msg.Alive())
    worker.get(msg.Greet)
    until(lambda: sum(second.rejected.values()) == 3)
    assert second.rejected["Closed of a worker that is not known"] == 2
    worker.hello().welcomed(LINEAGE + 1)
    worker.close_ticket(old[2])
    prove(second, worker, version=2)  # older than what it had from the learner before
    second.open_through(0, 9)
    new = work_of(worker, 6)
    assert {t.id.lineage for t in new} == {LINEAGE + 1}
    close_all(worker, new)
    assert len(second.wait_for_batch(0).tickets) == 6
    assert second.rejected["a closed ticket of an earlier lineage"] == 1
    second.close()


def test_a_closed_ticket_cannot_be_issued_again(pool, workers):
    worker = workers()
    prove(pool, worker)
    pool.open_through(0, 9)
    ticket = work_of(worker, 6)[0]
    worker.close_ticket(ticket)
    worker.get(msg.Ack)
    with pytest.raises(RuntimeError, match="is closed"):
        pool._collector.reissue(ticket.id)


def test_versions_within_an_episode_never_go_backwards(seeds):
    from factories import make_closed
    from msgspec.structs import replace

    from shared.episodes import VersionSpan

    pool = make_pool("inproc://unused", seeds, **{"selfplay.max_staleness": 1})
    pool.close()
    ticket = next(t for t in pool._collector.open_through(0, 9) if t.id.batch == 1)
    closed = make_closed(ticket)
    backwards = replace(closed.attempts[0], spans=(VersionSpan(1, 0, 1), VersionSpan(0, 1, 2)))
    with pytest.raises(MessageError, match="go backwards"):
        pool._collector.close(replace(closed, attempts=(backwards, *closed.attempts[1:])))
