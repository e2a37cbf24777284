"""The pool over real sockets, with workers that speak the protocol but have no engine."""

import queue
import threading
import time

import pytest
import zmq
from factories import make_closed

from learner.collector import Collector
from learner.parity import check_parity
from learner.problem_buffer import ProblemBuffer
from learner.ticket_check import TokenLimits
from learner.weight_client import StreamWeightSyncClient
from learner.worker_pool import Identity, WorkerPool
from shared import messages as msg
from shared.config_file import load_config
from shared.episodes import Task
from shared.errors import StreamTimeoutError, WeightSyncError, WorkerFailedError

IDENTITY = Identity(model="m", tokenizer="t", environment="e")
LINEAGE = 3


class FakeWorker:
    """A worker's stream without an engine: what it gets waits in `inbox`."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.name = name
        self.inbox: queue.Queue[msg.Message] = queue.Queue()
        self._outbox: queue.Queue[list[bytes]] = queue.Queue()
        self._endpoint = endpoint
        self._leaving = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._sequence = 0

    def _run(self) -> None:
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 1000)
        dealer.connect(self._endpoint)
        while not (self._leaving and self._outbox.empty()):
            while not self._outbox.empty():
                dealer.send_multipart(self._outbox.get())
            if dealer.poll(5):
                self.inbox.put(msg.decode(dealer.recv_multipart())[0])
        dealer.close()
        context.term()

    def send(self, message: msg.Message) -> None:
        self._outbox.put(msg.encode(message))

    def hello(self, **changes: object) -> "FakeWorker":
        fields = {"protocol": msg.PROTOCOL_VERSION, "worker": self.name, "incarnation": 1}
        fields |= {"model": "m", "tokenizer": "t", "environment": "e"}
        self.send(msg.Hello(**(fields | changes)))
        return self

    def get(self, kind: type) -> msg.Message:
        message = self.inbox.get(timeout=5)
        assert isinstance(message, kind), message
        return message

    def close_ticket(self, ticket, **made) -> None:
        self._outbox.put([bytes(f) for f in msg.encode_closed(self._sequence, make_closed(ticket, **made))])
        self._sequence += 1

    def leave(self) -> None:
        self._leaving = True
        self._thread.join(5)


@pytest.fixture
def make_pool(tmp_path, seeds):
    made: list = []

    def make(**overrides) -> tuple[WorkerPool, str]:
        settings = {
            "selfplay.proposals_per_task": 1,
            "selfplay.buffer_problems_per_task": 1,
            "selfplay.attempts": 2,
            "selfplay.seed_problems_per_task": 5,
            "selfplay.max_staleness": 0,
            "stream.batch_timeout_s": 5,
        } | overrides
        config = load_config(None, [f"--{k}={v}" for k, v in settings.items()])
        collector = Collector(
            ProblemBuffer(seeds, capacity=50, seed=0),
            tasks=list(Task),
            selfplay=config.selfplay,
            rewards=config.rewards,
            limits=TokenLimits(prompt=10, response=10, vocabulary=100),
            seed=0,
            lineage=LINEAGE,
        )
        endpoint = f"ipc://{tmp_path}/pool{len(made)}"
        made.append(WorkerPool(endpoint, config, IDENTITY, collector))
        return made[-1], endpoint

    yield make
    for pool in made:
        pool.close()


def joined(endpoint: str, name: str = "rollout-0") -> FakeWorker:
    worker = FakeWorker(endpoint, name).hello()
    assert worker.get(msg.Welcome) == msg.Welcome(LINEAGE)
    return worker


def test_tickets_out_closed_tickets_in_acknowledged(make_pool):
    pool, endpoint = make_pool()
    worker = joined(endpoint)
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


def test_credit_bounds_open_tickets_and_work_is_shared(make_pool):
    pool, endpoint = make_pool(**{"rollout.max_open_tickets": 2})
    workers = [joined(endpoint, f"rollout-{i}") for i in range(2)]
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


def test_a_worker_that_comes_after_the_start_is_refused(make_pool):
    pool, endpoint = make_pool()
    first = joined(endpoint)
    pool.wait_for_workers(1, 5)
    late = FakeWorker(endpoint, "rollout-1").hello()
    assert "cannot join" in late.get(msg.Refused).reason
    first.leave()
    late.leave()


def test_a_second_greeting_of_the_same_peer_is_refused(make_pool):
    _, endpoint = make_pool()
    worker = joined(endpoint)
    worker.name = "rollout-1"
    assert "already here" in worker.hello().get(msg.Refused).reason
    worker.leave()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": 99}, "protocol version 99"),
        ({"model": "x"}, "another model"),
        ({"tokenizer": "x"}, "another tokenizer"),
        ({"environment": "x"}, "another environment"),
    ],
)
def test_a_worker_that_does_not_match_is_refused_with_the_reason(make_pool, change, reason):
    pool, endpoint = make_pool()
    worker = FakeWorker(endpoint, "rollout-0").hello(**change)
    assert reason in worker.get(msg.Refused).reason
    with pytest.raises(StreamTimeoutError, match="0 of 1 rollout workers"):
        pool.wait_for_workers(1, 0.05)
    worker.leave()


def test_a_second_worker_of_the_same_name_is_refused(make_pool):
    _, endpoint = make_pool()
    first = joined(endpoint)
    second = FakeWorker(endpoint, "rollout-0").hello()
    assert "already here" in second.get(msg.Refused).reason
    first.leave()
    second.leave()


def test_what_comes_before_a_greeting_is_refused(make_pool):
    pool, endpoint = make_pool()
    stranger = FakeWorker(endpoint, "rollout-0")
    stranger.send(msg.Failed("boo"))
    assert "before a greeting" in stranger.get(msg.Refused).reason
    pool.open_through(0, 9)  # and it has not failed the run
    stranger.leave()


def test_a_forged_ticket_is_refused_and_the_batch_is_unharmed(make_pool):
    pool, endpoint = make_pool()
    worker = joined(endpoint)
    pool.open_through(0, 9)
    tickets = worker.get(msg.Work).tickets
    worker.close_ticket(tickets[0], version=7)
    assert "version 7" in worker.get(msg.Refused).reason
    for ticket in tickets:
        worker.close_ticket(ticket)
    assert len(pool.wait_for_batch(0).tickets) == 6
    assert sum(pool.rejected.values()) == 1
    worker.leave()


def test_a_worker_that_reports_failure_ends_the_wait_with_its_reason(make_pool):
    pool, endpoint = make_pool()
    worker = joined(endpoint)
    pool.open_through(0, 9)
    worker.send(msg.Failed("the engine is dead"))
    with pytest.raises(WorkerFailedError, match="rollout-0: the engine is dead"):
        pool.wait_for_batch(0)
    worker.leave()


def test_a_batch_that_stalls_says_how_far_it_came(make_pool):
    pool, endpoint = make_pool(**{"stream.batch_timeout_s": 0.3})
    worker = joined(endpoint)
    pool.open_through(0, 9)
    worker.close_ticket(worker.get(msg.Work).tickets[0])
    with pytest.raises(StreamTimeoutError, match="1 of 6 tickets of batch 0"):
        pool.wait_for_batch(0)
    worker.leave()


def answer(worker: FakeWorker, result: msg.Result) -> msg.Request:
    call = worker.get(msg.Call)
    worker.send(msg.Reply(call.id, result))
    return call.request


def test_calls_reach_all_workers_and_return_their_answers(make_pool):
    pool, endpoint = make_pool()
    workers = [joined(endpoint, f"rollout-{i}") for i in range(2)]
    call = pool.start_call(msg.StartUpdate())
    for worker in workers:
        assert answer(worker, msg.Done()) == msg.StartUpdate()
    assert pool.finish_call(call, 5) == {"rollout-0": msg.Done(), "rollout-1": msg.Done()}
    for worker in workers:
        worker.leave()


def test_a_weight_sync_that_one_worker_fails_is_an_error(make_pool):
    pool, endpoint = make_pool()
    workers = [joined(endpoint, f"rollout-{i}") for i in range(2)]
    client = StreamWeightSyncClient(pool, probe=[1, 2, 3], timeout_s=5)
    replies = threading.Thread(
        target=lambda: (answer(workers[0], msg.Done()), answer(workers[1], msg.CallFailed("wrong shape")))
    )
    replies.start()
    with pytest.raises(WeightSyncError, match=r"UpdateWeights: rollout worker rollout-1: wrong shape"):
        client.update_weights({"path": "x"})
    replies.join()
    for worker in workers:
        worker.leave()


def test_a_weight_sync_without_an_answer_times_out(make_pool):
    pool, endpoint = make_pool()
    worker = joined(endpoint)
    with pytest.raises(WeightSyncError, match="0 of 1 workers answered"):
        StreamWeightSyncClient(pool, probe=[1], timeout_s=0.1).init_weight_transfer_engine({})
    worker.leave()


def test_parity_within_tolerance_passes_and_beyond_it_stops():
    import numpy as np

    ours = np.array([-1.0, -2.0], dtype=np.float32)
    assert check_parity(ours, [-1.00005, -2.0], worker="w", version=3, tolerance=1e-4) == pytest.approx(5e-5, rel=1e-2)
    for theirs in ([-1.0, -2.001], [-1.0, float("nan")], [-1.0]):
        with pytest.raises(WeightSyncError, match="weight sync"):
            check_parity(ours, theirs, worker="w", version=3, tolerance=1e-4)
