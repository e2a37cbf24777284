"""The worker's side of the stream, with a scripted engine and learner."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from factories import make_closed, make_problem

from rollout.worker import RolloutWorker, WorkerSpec, _start_engine
from shared import messages as msg
from shared.config_file import load_config
from shared.episodes import Task, Ticket, TicketId
from shared.errors import EngineError, HandshakeError, SentAwayError, WorkerFailedError
from shared.ticket_wire import TicketFrame, TicketHeader
from shared.weight_wire import LiveWeights

LINEAGE = 4
# Of a wait for what comes at once, and between things that no test waits for.
PATIENCE_S = 60
NEVER_S = 1e6
PROBE = (1, 2, 3)
LIVE = (LiveWeights(("a", "b"), ((4, 6), (4, 6))),)
SCORED = msg.UpdateFinished((-1.0, -1.0), 0.01, LIVE)


class ScriptedLearner:
    """The worker's client: what the learner sends is put in `inbox`, what the worker sends stands in `sent`.

    Of closed tickets that is their headers; `messages` says how many came together.
    """

    def __init__(self) -> None:
        self.messages: list[int] = []
        self.inbox: asyncio.Queue = asyncio.Queue()
        self.sent: asyncio.Queue = asyncio.Queue()

    async def send(self, frames) -> None:
        message, tickets = msg.decode(frames)
        if isinstance(message, msg.Closed):
            self.messages.append(len(tickets))
            for ticket in tickets:
                await self.sent.put(TicketFrame.read(ticket).header)
        else:
            await self.sent.put(message)

    async def receive(self, timeout_s=None):
        return await asyncio.wait_for(self.inbox.get(), timeout_s)

    async def watch_handshakes(self) -> None:
        await asyncio.Event().wait()

    async def next(self):
        return await asyncio.wait_for(self.sent.get(), PATIENCE_S)

    async def quiet(self) -> bool:
        await asyncio.sleep(0.05)
        return self.sent.empty()


class ScriptedEngine:
    """Does what it is told at once, except to finish an update before `may_finish`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.unusable = False
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def start_weight_update(self):
        raise EngineError("no room")

    async def update_weights(self, info):
        self.unusable = True
        raise EngineError("the engine is dead")

    async def finish_weight_update(self, version):
        self.done.append(f"finishing {version}")
        await self.may_finish.wait()
        self.done.append(f"finished {version}")
        return SimpleNamespace(pause_s=0.01, live=LIVE)

    async def score(self, ids, request_id):
        return np.full(len(ids) - 1, -1.0, dtype=np.float32)

    async def sleep(self, *, for_update):
        self.done.append("asleep for an update" if for_update else "asleep")

    async def wake(self):
        self.done.append("awake")

    async def forget_learner(self):
        self.done.append("forgot the learner")

    async def check_alive(self):
        if self.unusable:
            raise EngineError("it is unusable")


class SlowPlay:
    """Tickets close at once, except those of index 9, which take for ever."""

    def __init__(self) -> None:
        self.cancelled = 0

    async def play(self, ticket):
        try:
            await asyncio.sleep(1000 if ticket.id.index == 9 else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return make_closed(ticket)


@pytest.fixture
def make_worker(monkeypatch):
    """Of a model that is not there: given its end of the stream, a worker."""
    monkeypatch.setattr("rollout.worker.ChatTokenizer.from_folder", lambda folder: None)
    monkeypatch.setattr("rollout.worker.model_fingerprint", lambda folder: "m")
    monkeypatch.setattr("rollout.worker.tokenizer_fingerprint", lambda folder: "t")
    for name in ("ALIVE_INTERVAL_S", "LIVENESS_INTERVAL_S"):
        monkeypatch.setattr(f"rollout.worker.{name}", NEVER_S)
    return lambda client: RolloutWorker(load_config(None), WorkerSpec("rollout-0", "nowhere"), ScriptedEngine(), client)


@pytest.fixture
async def worker(make_worker):
    """One that has said hello, and what it said."""
    learner = ScriptedLearner()
    worker = make_worker(learner)
    worker._selfplay = SlowPlay()
    worker.learner, worker.running = learner, asyncio.create_task(worker.run())
    worker.hello = await learner.next()
    assert (worker.hello.worker, worker.hello.model, worker.hello.tokenizer) == ("rollout-0", "m", "t")
    yield worker
    worker.running.cancel()
    await asyncio.gather(worker.running, return_exceptions=True)


async def welcome(worker, hello=None) -> ScriptedLearner:
    """Accept its last greeting, or this one."""
    await worker.learner.inbox.put(msg.Welcome(LINEAGE, (hello or worker.hello).incarnation))
    return worker.learner


async def bring_up(worker, version: int = 0) -> ScriptedLearner:
    """Welcome it and have it finish an update and pass the probe."""
    learner = await welcome(worker)
    await learner.inbox.put(msg.Call(100 + version, msg.FinishUpdate(version, PROBE)))
    assert await learner.next() == msg.Reply(100 + version, SCORED)
    await learner.inbox.put(msg.ProbePassed(version))
    return learner


async def connect_again(worker) -> None:
    """The learner finds it on a new connection, and has it say hello."""
    await worker.learner.inbox.put(msg.Greet())
    hello = await worker.learner.next()
    assert (hello.resumes, hello.incarnation) == (True, worker.hello.incarnation)


async def forget(worker) -> None:
    """The same, by a learner that does not know it; what it says hello as then."""
    await connect_again(worker)
    await worker.learner.inbox.put(msg.Forgotten(worker.hello.incarnation))
    before, worker.hello = worker.hello, await worker.learner.next()
    assert (worker.hello.resumes, worker.hello.incarnation == before.incarnation) == (False, False)


def work(*indices: int) -> msg.Work:
    problem = make_problem("2,7")
    return msg.Work(
        tuple(Ticket(TicketId(LINEAGE, 0, i), "buffer", Task.DEDUCTION, (), problem, 0, 1) for i in indices)
    )


async def test_one_that_is_refused_says_so_though_its_hello_cannot_be_sent(make_worker, monkeypatch):
    class Refusing(ScriptedLearner):
        async def send(self, frames) -> None:
            await asyncio.Event().wait()  # as ZeroMQ does, once the connection has been refused

        async def watch_handshakes(self) -> None:
            raise HandshakeError("it does not know this worker's key")

    monkeypatch.setattr("rollout.worker.LAST_WORDS_S", 0.01)
    with pytest.raises(HandshakeError, match="does not know this worker's key"):
        await asyncio.wait_for(make_worker(Refusing()).run(), PATIENCE_S)


async def test_tickets_are_numbered_as_they_close(worker):
    learner = await bring_up(worker)
    await learner.inbox.put(work(0, 1))
    closed = [await learner.next(), await learner.next()]
    assert [c.sequence for c in closed] == [0, 1]
    await learner.inbox.put(msg.Bye())
    await asyncio.wait_for(worker.running, PATIENCE_S)


async def test_no_ticket_leaves_before_the_first_weights_are_proven(worker):
    learner = await welcome(worker)
    await learner.inbox.put(work(0))
    assert await learner.quiet()


async def test_no_ticket_leaves_between_new_weights_and_the_proof_that_they_are_right(worker):
    learner = await bring_up(worker)
    await learner.inbox.put(msg.Call(7, msg.FinishUpdate(1, PROBE)))
    assert await learner.next() == msg.Reply(7, SCORED)
    await learner.inbox.put(work(0))
    assert await learner.quiet()
    await learner.inbox.put(msg.ProbePassed(0))  # of other weights
    assert await learner.quiet()
    await learner.inbox.put(msg.ProbePassed(1))
    assert isinstance(await learner.next(), TicketHeader)


async def test_weights_never_go_backwards_in_a_lineage(worker):
    learner = await bring_up(worker, version=3)
    await learner.inbox.put(msg.Call(7, msg.FinishUpdate(2, PROBE)))
    reply = await learner.next()
    assert "never goes backwards" in reply.result.reason
    assert worker._engine.done == ["finishing 3", "finished 3"]


async def test_a_call_that_fails_is_answered_with_the_reason_and_the_worker_goes_on(worker):
    learner = await bring_up(worker)
    await learner.inbox.put(msg.Call(1, msg.StartUpdate()))
    assert await learner.next() == msg.Reply(1, msg.CallFailed("no room"))
    await learner.inbox.put(work(0))
    assert isinstance(await learner.next(), TicketHeader)


async def test_a_call_that_leaves_the_engine_unusable_ends_the_worker(worker):
    learner = await bring_up(worker)
    await learner.inbox.put(msg.Call(1, msg.UpdateWeights({})))
    assert await learner.next() == msg.Reply(1, msg.CallFailed("the engine is dead"))
    assert await learner.next() == msg.Failed("it is unusable")
    with pytest.raises(EngineError):
        await worker.running


async def test_a_ticket_that_fails_is_reported_before_the_worker_ends(worker):
    async def play(ticket):
        raise EngineError("request 3 failed")

    worker._selfplay.play = play
    learner = await bring_up(worker)
    await learner.inbox.put(work(0))
    assert await learner.next() == msg.Failed("request 3 failed")
    with pytest.raises(EngineError):
        await worker.running


async def test_a_learner_that_cannot_be_told_does_not_hold_up_the_end(worker, monkeypatch):
    async def blocked(frames):
        await asyncio.sleep(1000)

    monkeypatch.setattr("rollout.worker.LAST_WORDS_S", 0.01)
    learner = await welcome(worker)
    learner.send = blocked
    await learner.inbox.put(msg.Refused("no longer"))
    with pytest.raises(SentAwayError, match="no longer"):
        await asyncio.wait_for(worker.running, PATIENCE_S)


async def test_a_worker_that_is_refused_says_why(worker):
    await worker.learner.inbox.put(msg.Refused("another model"))
    with pytest.raises(WorkerFailedError, match="another model") as raised:
        await worker.running
    assert not isinstance(raised.value, SentAwayError)  # another start would be refused too


async def test_the_engine_sleeps_and_wakes_when_told(worker):
    learner = await bring_up(worker)
    for id, request in enumerate((msg.Sleep(for_update=True), msg.Sleep(), msg.Wake())):
        await learner.inbox.put(msg.Call(id, request))
        assert await learner.next() == msg.Reply(id, msg.Done())
    assert worker._engine.done[-3:] == ["asleep for an update", "asleep", "awake"]


async def test_it_says_that_it_is_alive_until_its_engine_is_not(worker, monkeypatch):
    monkeypatch.setattr("rollout.worker.ALIVE_INTERVAL_S", 0.001)
    monkeypatch.setattr("rollout.worker.LIVENESS_INTERVAL_S", 0.001)
    for coroutine in (worker._watch_engine(), worker._say_alive()):  # those that run wait for ever
        worker._start(coroutine, worker._watching)
    assert [await worker.learner.next() for _ in range(3)] == [msg.Alive()] * 3
    worker._engine.unusable = True
    with pytest.raises(EngineError):
        await asyncio.wait_for(worker.running, PATIENCE_S)
    sent = [worker.learner.sent.get_nowait() for _ in range(worker.learner.sent.qsize())]
    assert sent[-1] == msg.Failed("it is unusable")


async def test_not_known_any_more_it_drops_everything_and_begins_anew(worker):
    learner = await bring_up(worker, version=5)
    await learner.inbox.put(work(9, 0))
    assert (await learner.next()).sequence == 0
    await forget(worker)
    assert worker._selfplay.cancelled == 1
    assert worker._engine.done[-1] == "forgot the learner"  # whose memory it would hold on to
    await bring_up(worker, version=2)  # of another lineage: older weights are in order
    await learner.inbox.put(work(1))
    assert (await learner.next()).sequence == 0


async def test_tickets_held_back_for_want_of_proof_do_not_survive_being_forgotten(worker):
    learner = await bring_up(worker)
    await learner.inbox.put(msg.Call(7, msg.FinishUpdate(1, PROBE)))
    assert await learner.next() == msg.Reply(7, SCORED)
    await learner.inbox.put(work(0))
    await forget(worker)
    await bring_up(worker, version=1)
    assert await learner.quiet()


async def test_an_update_that_is_being_finished_is_not_cut_short_by_being_forgotten(worker):
    learner = await bring_up(worker)
    worker._engine.may_finish.clear()
    await learner.inbox.put(msg.Call(7, msg.FinishUpdate(1, PROBE)))
    await connect_again(worker)
    await learner.inbox.put(msg.Forgotten(worker.hello.incarnation))
    assert await learner.quiet()
    worker._engine.may_finish.set()
    assert isinstance(await learner.next(), msg.Hello)  # and no reply to a call that nobody waits for
    assert worker._engine.done[-2:] == ["finished 1", "forgot the learner"]
    assert await learner.quiet()


async def test_what_is_meant_for_an_earlier_incarnation_is_ignored(worker):
    learner = worker.learner
    await learner.inbox.put(msg.Greet())
    await learner.inbox.put(msg.Greet())
    second, third = await learner.next(), await learner.next()
    await welcome(worker, second)
    for message in (work(0), msg.Call(7, msg.Sleep()), msg.ProbePassed(0)):
        await learner.inbox.put(message)
    assert await learner.quiet()
    await welcome(worker, third)
    await learner.inbox.put(msg.Call(8, msg.Sleep()))
    assert await learner.next() == msg.Reply(8, msg.Done())
    assert worker._engine.done.count("asleep") == 1


async def test_signs_of_life_come_from_round_trips_through_the_engine_alone(worker, monkeypatch):
    monkeypatch.setattr("rollout.worker.LIVENESS_INTERVAL_S", 0.01)
    beats, answers = [], asyncio.Semaphore(2)
    worker._beat = lambda: beats.append(1)
    monkeypatch.setattr(worker._engine, "check_alive", answers.acquire, raising=False)
    watching = asyncio.create_task(worker._watch_engine())
    for answered in (2, 3):
        while len(beats) < answered:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        assert len(beats) == answered  # the next time the engine does not answer
        answers.release()
    watching.cancel()


async def test_while_the_engine_starts_the_worker_shows_life(monkeypatch):
    beats = []

    async def start(*_, **__):
        while len(beats) < 3:
            await asyncio.sleep(0.001)
        return "engine"

    monkeypatch.setattr("rollout.worker.ALIVE_INTERVAL_S", 0.01)
    monkeypatch.setattr("rollout.worker.Engine.start", start)
    starting = _start_engine(load_config(None), lambda: beats.append(1))
    assert await asyncio.wait_for(starting, PATIENCE_S) == "engine"
    before = len(beats)
    await asyncio.sleep(0.1)
    assert len(beats) == before


async def test_on_a_new_connection_its_work_goes_on_and_what_is_not_acknowledged_is_sent_again(worker):
    learner = await bring_up(worker)
    await learner.inbox.put(work(0, 1, 9))
    assert [(await learner.next()).sequence for _ in range(2)] == [0, 1]
    await learner.inbox.put(msg.Ack((0,)))
    await connect_again(worker)
    await learner.inbox.put(work(2))  # before it is welcomed: meant for nobody
    await welcome(worker)
    again = await learner.next()
    assert (again.sequence, again.id.index) == (1, 1)
    await learner.inbox.put(work(1, 9, 3))  # two of them it has
    assert (await learner.next()).id.index == 3
    await learner.inbox.put(msg.Ack((1,)))
    await learner.inbox.put(msg.Ack((2,)))
    await connect_again(worker)
    await welcome(worker)
    assert await learner.quiet()
    assert worker._selfplay.cancelled == 0


async def test_a_ticket_closed_while_nobody_listens_is_sent_when_it_is_welcomed_again(worker):
    learner = await bring_up(worker)
    await learner.inbox.put(msg.Call(7, msg.FinishUpdate(1, PROBE)))
    assert await learner.next() == msg.Reply(7, SCORED)
    await learner.inbox.put(work(0))
    await connect_again(worker)
    worker._weights_proven.set()
    assert await learner.quiet()
    await welcome(worker)
    assert (await learner.next()).id.index == 0


async def test_a_call_that_is_asked_again_is_done_once_and_answered_again(worker):
    learner = await bring_up(worker)
    worker._engine.may_finish.clear()
    call = msg.Call(7, msg.FinishUpdate(1, PROBE))
    await learner.inbox.put(call)
    await connect_again(worker)
    await welcome(worker)
    await learner.inbox.put(call)  # it is at it
    assert await learner.quiet()
    worker._engine.may_finish.set()
    assert await learner.next() == msg.Reply(7, SCORED)
    await connect_again(worker)
    await welcome(worker)
    await learner.inbox.put(call)
    assert await learner.next() == msg.Reply(7, SCORED)
    assert worker._engine.done.count("finished 1") == 1
