"""The real worker and pool, over tcp with keys, through a connection that is cut; engine and self-play are played."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from cut_proxy import CutProxy
from factories import make_closed
from fake_worker import make_pool

import learner.worker_pool
from launch.processes import free_port
from rollout.worker import RolloutWorker, WorkerSpec
from shared import messages as msg
from shared.config_file import load_config
from shared.transport import StreamClient, make_keys

BATCHES = 12


class Engine:
    """Counts the updates that it finishes, each of which takes a while."""

    def __init__(self) -> None:
        self.finished: Counter[int] = Counter()

    async def finish_weight_update(self, version):
        await asyncio.sleep(0.1)
        self.finished[version] += 1
        return SimpleNamespace(pause_s=0.0, live=())

    async def score(self, ids, request_id):
        return np.zeros(len(ids) - 1, dtype=np.float32)

    async def check_alive(self):
        pass

    async def forget_learner(self):
        pass


class Play:
    """Counts how often each ticket is played, which takes a while."""

    def __init__(self) -> None:
        self.played: Counter = Counter()

    async def play(self, ticket):
        self.played[ticket.id] += 1
        await asyncio.sleep(0.02 * (ticket.seed % 5))
        return make_closed(ticket)


class Connection:
    """A worker in its own thread and loop, and the pool, with a proxy between them."""

    def __init__(self, seeds) -> None:
        self.port = free_port()
        self.keys, client_keys = make_keys()
        self.pool = make_pool(f"tcp://127.0.0.1:{self.port}", seeds, keys=self.keys, **{"selfplay.max_staleness": 1})
        self.proxy = CutProxy(self.port)
        self.engine, self.play = Engine(), Play()
        self._spec = WorkerSpec("rollout-0", f"tcp://127.0.0.1:{self.proxy.port}", client_keys)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.thread.start()

    async def _run(self) -> None:
        client = StreamClient(self._spec.endpoint, max_message_bytes=2**20, keys=self._spec.keys)
        worker = RolloutWorker(load_config(None), self._spec, self.engine, client)
        worker._selfplay = self.play
        worker._environment = SimpleNamespace(fingerprint="e")
        try:
            await worker.run()
        finally:
            client.close()

    def sync(self, version: int) -> None:
        requests = dict.fromkeys(self.pool.members(), msg.FinishUpdate(version, (1, 2)))
        assert len(self.pool.call(requests, 60)) == 1
        self.pool.prove(self.pool.members(), version)
        self.pool.open_through(version, BATCHES - 1)

    def end(self) -> None:
        """Said until it is heard, since connections are cut."""
        while self.thread.is_alive():
            self.pool.send_home()
            self.thread.join(0.1)
        self.pool.close()
        self.proxy.close()


@pytest.fixture
def connection(seeds, monkeypatch):
    monkeypatch.setattr("rollout.worker.ALIVE_INTERVAL_S", 0.02)
    monkeypatch.setattr("rollout.worker.ChatTokenizer.from_folder", lambda folder: None)
    monkeypatch.setattr("rollout.worker.model_fingerprint", lambda folder: "m")
    monkeypatch.setattr("rollout.worker.tokenizer_fingerprint", lambda folder: "t")
    connection = Connection(seeds)
    yield connection
    connection.end()


def test_a_connection_that_is_cut_again_and_again_costs_no_work(connection):
    pool, done = connection.pool, threading.Event()
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        rng = random.Random(0)
        while not done.wait(rng.uniform(0.02, 0.4)):
            cuts += connection.proxy.cut()

    pool.wait_for_workers(1, 60)
    cutting = threading.Thread(target=cut, daemon=True)
    cutting.start()
    batches = []
    for version in range(BATCHES):
        connection.sync(version)
        batches.append(pool.wait_for_batch(version))
    done.set()
    cutting.join()
    assert cuts > 5
    assert set(connection.play.played.values()) == {1}  # nothing was generated again
    assert sorted(t.id for batch in batches for t in batch.tickets) == sorted(connection.play.played)
    assert connection.engine.finished == dict.fromkeys(range(BATCHES), 1)  # no call was done twice
    turnover = pool.turnover()
    assert (turnover.workers_lost, turnover.tickets_reissued) == (0, 0)


def test_who_is_not_back_in_time_is_given_up_and_then_begins_anew(connection, monkeypatch):
    monkeypatch.setattr(learner.worker_pool, "RECONNECT_S", 0.0)
    pool = connection.pool
    pool.wait_for_workers(1, 60)
    connection.sync(0)
    pool.wait_for_batch(0)
    (before,) = pool.members()
    with pool._changed:  # the worker's words wait meanwhile
        connection.proxy.cut()
        (peer,) = pool._workers
        pool._gone(peer)
        pool._sweep()
    pool.wait_for_newcomer(60)
    connection.sync(1)
    pool.wait_for_batch(1)
    (after,) = pool.members()
    assert (after.name, after == before) == (before.name, False)
