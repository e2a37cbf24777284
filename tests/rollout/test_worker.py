"""The worker's side of the stream, with a scripted engine and learner."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from factories import make_closed, make_problem

from rollout.worker import RolloutWorker, WorkerSpec
from shared import messages as msg
from shared.config_file import load_config
from shared.episodes import Task, Ticket, TicketId
from shared.errors import EngineError, WorkerFailedError


class ScriptedLearner:
    """The worker's client: what the learner sends is put in `inbox`, what the worker sends stands in `sent`."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue = asyncio.Queue()
        self.sent: asyncio.Queue = asyncio.Queue()

    async def send(self, frames) -> None:
        await self.sent.put(msg.decode(frames)[0])

    async def receive(self, timeout_s=None):
        return await asyncio.wait_for(self.inbox.get(), timeout_s)

    async def next(self):
        return await asyncio.wait_for(self.sent.get(), 5)

    async def quiet(self) -> bool:
        await asyncio.sleep(0.05)
        return self.sent.empty()


class ScriptedEngine:
    version = 0

    async def finish_weight_update(self, version):
        return SimpleNamespace(pause_s=0.01)

    async def score(self, ids, request_id):
        return np.full(len(ids) - 1, -1.0, dtype=np.float32)

    async def start_weight_update(self):
        raise EngineError("the engine is dead")


class InstantPlay:
    async def play(self, ticket):
        return make_closed(ticket)


@pytest.fixture
async def worker(monkeypatch):
    monkeypatch.setattr("rollout.worker.ChatTokenizer.from_folder", lambda folder: None)
    monkeypatch.setattr("rollout.worker.model_fingerprint", lambda folder: "m")
    monkeypatch.setattr("rollout.worker.tokenizer_fingerprint", lambda folder: "t")
    learner = ScriptedLearner()
    worker = RolloutWorker(load_config(None), WorkerSpec("rollout-0", "nowhere"), ScriptedEngine(), learner)
    worker._selfplay = InstantPlay()
    worker.learner, worker.running = learner, asyncio.create_task(worker.run())
    hello = await learner.next()
    assert (hello.worker, hello.model, hello.tokenizer) == ("rollout-0", "m", "t")
    yield worker
    worker.running.cancel()
    await asyncio.gather(worker.running, return_exceptions=True)


def ticket(index: int) -> Ticket:
    problem = make_problem("2,7")
    return Ticket(TicketId(0, 0, index), "buffer", Task.DEDUCTION, (), problem, 0, 1)


async def test_tickets_are_numbered_as_they_close(worker):
    learner = worker.learner
    await learner.inbox.put(msg.Welcome(0))
    await learner.inbox.put(msg.Work((ticket(0), ticket(1))))
    closed = [await learner.next(), await learner.next()]
    assert [c.sequence for c in closed] == [0, 1]
    await learner.inbox.put(msg.Bye())
    await asyncio.wait_for(worker.running, 5)


async def test_no_ticket_leaves_between_new_weights_and_the_proof_that_they_are_right(worker):
    learner = worker.learner
    await learner.inbox.put(msg.Welcome(0))
    await learner.inbox.put(msg.Call(7, msg.FinishUpdate(1, (1, 2, 3))))
    reply = await learner.next()
    assert reply == msg.Reply(7, msg.UpdateFinished((-1.0, -1.0), 0.01))
    await learner.inbox.put(msg.Work((ticket(0),)))
    assert await learner.quiet()
    await learner.inbox.put(msg.ProbePassed(1))
    assert isinstance(await learner.next(), msg.Closed)


async def test_a_call_that_fails_is_answered_with_the_reason(worker):
    learner = worker.learner
    await learner.inbox.put(msg.Welcome(0))
    await learner.inbox.put(msg.Call(1, msg.StartUpdate()))
    assert await learner.next() == msg.Reply(1, msg.CallFailed("the engine is dead"))


async def test_a_ticket_that_fails_is_reported_before_the_worker_ends(worker):
    async def play(ticket):
        raise EngineError("request 3 failed")

    worker._selfplay.play = play
    learner = worker.learner
    await learner.inbox.put(msg.Welcome(0))
    await learner.inbox.put(msg.Work((ticket(0),)))
    assert await learner.next() == msg.Failed("request 3 failed")
    with pytest.raises(EngineError):
        await worker.running


async def test_a_worker_that_is_refused_says_why(worker):
    await worker.learner.inbox.put(msg.Refused("another model"))
    with pytest.raises(WorkerFailedError, match="another model"):
        await worker.running
