"""Rollout workers that speak the protocol but have no engine, and a pool for them to talk to."""

from __future__ import annotations

import itertools
import queue
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import zmq
from factories import make_closed

from learner.collector import Collector
from learner.greeting import Identity
from learner.journal import Journal
from learner.problem_buffer import ProblemBuffer
from learner.recovery import recover
from learner.ticket_check import TokenLimits
from learner.weight_client import StreamWeightSyncClient
from learner.weight_sender import SendStats
from learner.worker_pool import WorkerPool
from shared import messages as msg
from shared.config_file import load_config
from shared.episodes import ClosedTicket, Evaluation, Task, TaskAccuracy, Ticket
from shared.ticket_wire import encode_ticket
from shared.weight_wire import LiveWeights

IDENTITY = Identity(model="m", tokenizer="t", environment="e")
LINEAGE = 3

_incarnations = itertools.count(1)


class FakeWorker:
    """A worker's stream: what it gets waits in `inbox`, or goes to `script`, on the stream's thread."""

    def __init__(self, endpoint: str, name: str, script: Callable[[msg.Message], None] | None = None) -> None:
        self.name = name
        self.incarnation = 0
        self.inbox: queue.Queue[msg.Message] = queue.Queue()
        self._script = script or self.inbox.put
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
                message, _ = msg.decode(dealer.recv_multipart())
                if not isinstance(message, msg.Alive):
                    self._script(message)
        dealer.close()
        context.term()

    def send(self, message: msg.Message) -> None:
        self._outbox.put(msg.encode(message))

    def hello(self, **changes: object) -> FakeWorker:
        self.incarnation = next(_incarnations)
        fields = {"protocol": msg.PROTOCOL_VERSION, "worker": self.name, "incarnation": self.incarnation}
        fields |= {"model": "m", "tokenizer": "t", "environment": "e"}
        self.send(msg.Hello(**(fields | changes)))
        return self

    def get(self, kind: type) -> msg.Message:
        message = self.inbox.get(timeout=60)
        assert isinstance(message, kind), message
        return message

    def acknowledged(self, count: int) -> list[int]:
        """The sequence numbers of so many tickets, in however many messages they are acknowledged."""
        sequences: list[int] = []
        while len(sequences) < count:
            sequences += self.get(msg.Ack).sequences
        return sequences

    def welcomed(self, lineage: int = LINEAGE) -> FakeWorker:
        assert self.get(msg.Welcome) == msg.Welcome(lineage, self.incarnation)
        return self

    def close_ticket(self, ticket: Ticket, **made) -> None:
        self.close_tickets(make_closed(ticket, **made))

    def close_tickets(self, *closed: ClosedTicket) -> None:
        """In one message."""
        frames = [encode_ticket(self._sequence + i, each) for i, each in enumerate(closed)]
        self._sequence += len(frames)
        self._outbox.put(msg.encode_closed(frames))

    def answer(self, result: msg.Result) -> msg.Request:
        call = self.get(msg.Call)
        self.send(msg.Reply(call.id, result))
        return call.request

    def leave(self) -> None:
        """Be gone, without a word."""
        self._leaving = True
        self.join()

    def join(self) -> None:
        """Until it is gone."""
        self._thread.join(60)


SMALL_BATCHES = {
    "selfplay.proposals_per_task": 1,
    "selfplay.buffer_problems_per_task": 1,
    "selfplay.attempts": 2,
    "selfplay.seed_problems_per_task": 5,
    "selfplay.max_staleness": 0,
    "stream.batch_timeout_s": 60,
}


def make_pool(
    endpoint: str,
    seeds,
    *,
    lineage: int = LINEAGE,
    clock=None,
    keys=None,
    journal: Journal | None = None,
    saved: tuple[dict, dict, int] | None = None,
    version: int = 0,
    **overrides,
) -> WorkerPool:
    """A pool and its collector; batches have six tickets.

    journal, saved: what a learner that goes on from `version` finds: the journal, and the states of buffer and
        collector with the end of the journal at that time
    """
    config = load_config(None, [f"--{k}={v}" for k, v in (SMALL_BATCHES | overrides).items()])
    buffer = ProblemBuffer(seeds, capacity=50, seed=0)
    collector = Collector(
        buffer,
        tasks=list(Task),
        selfplay=config.selfplay,
        rewards=config.rewards,
        limits=TokenLimits(prompt=10, response=10, vocabulary=100),
        seed=0,
        lineage=lineage,
        first_batch=version,
    )
    if journal is None:
        with tempfile.TemporaryDirectory() as folder:  # open, the journal outlives its name
            journal = Journal(Path(folder) / "journal")
    else:
        go_on(collector, journal, buffer, saved, version)
    timed = {} if clock is None else {"clock": clock}
    return WorkerPool(endpoint, config, IDENTITY, collector, journal, keys=keys, **timed)


def go_on(
    collector: Collector, journal: Journal, buffer: ProblemBuffer, saved: tuple[dict, dict, int] | None, version: int
) -> None:
    """As the trainer does with its checkpoint and the journal."""
    held, since = [], 0
    if saved is None:
        collector.open(version, 10**6)
    else:
        buffer_state, collector_state, since = saved
        buffer.restore(buffer_state)
        held = collector.restore(collector_state)
    recover(journal, collector, version=version, held=held, since=since)


class Clock:
    """A pool's time, which passes when a test says so."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def pass_by(self, seconds: float, pool: WorkerPool) -> None:
        """Whoever waits in the pool notices."""
        with pool._changed:
            self._now += seconds
            pool._changed.notify_all()


class ObedientWorker(FakeWorker):
    """Says hello, answers calls, closes tickets with the weights that it has, as a real worker does; has no engine.

    fails_at, silent_at: the name of a request that it reports as failed, or does not answer
    late_at: the name of a request that it answers when told to by `answer_late`
    last_batch: of which it closes tickets
    dies_at: the name of a message or request on which it is gone without a word
    said: in order, the names of the requests, "work" and "proven"; `journal` gets (name, what) of several workers
    """

    def __init__(
        self,
        endpoint: str,
        name: str = "rollout-0",
        *,
        fails_at: str | None = None,
        silent_at: str | None = None,
        late_at: str | None = None,
        dies_at: str | None = None,
        last_batch: int | None = None,
        probe: tuple[float, ...] = (-1.0, -2.0),
        live: tuple[LiveWeights, ...] = (LiveWeights(("a", "b"), ((4, 6),)),),
        journal: list[tuple[str, str]] | None = None,
    ) -> None:
        self.fails_at, self.silent_at, self.dies_at, self.probe = fails_at, silent_at, dies_at, probe
        self.live = live
        self.late_at, self.last_batch = late_at, last_batch
        self.late: list[tuple[int, msg.Request]] = []
        self.said: list[str] = []
        self.requests: list[msg.Request] = []
        self.refused: str | None = None
        self.sent_home = False
        self._journal = [] if journal is None else journal
        self._staged = self._proven = -1
        self._held: list[Ticket] = []
        super().__init__(endpoint, name, self._obey)
        self.hello()

    def _obey(self, message: msg.Message) -> None:
        match message:
            case msg.Call(id, request):
                self.requests.append(request)
                self._say(type(request).__name__)
                if type(request).__name__ == self.late_at:
                    self.late.append((id, request))
                elif not self._leaving and type(request).__name__ != self.silent_at:
                    self._reply(id, request)
            case msg.ProbePassed(version):
                self._say("proven")
                self._proven = version
                self._close_held()
            case msg.Work(tickets):
                self._say("work")
                self._held += tickets
                self._close_held()
            case msg.Refused(reason):
                self.refused = reason
                self._leaving = True
            case msg.Greet():
                self._held, self._proven = [], -1
                self.hello()
            case msg.Bye():
                self.sent_home = True

    def answer_late(self) -> None:
        """The requests that wait for it, and none after them."""
        self.late_at = None
        for id, request in self.late:
            self._reply(id, request)

    def _say(self, what: str) -> None:
        self.said.append(what)
        self._journal.append((self.name, what))
        if what == self.dies_at:
            self._leaving = True

    def _reply(self, id: int, request: msg.Request) -> None:
        result: msg.Result = msg.Done()
        if type(request).__name__ == self.fails_at:
            result = msg.CallFailed("it could not")
        elif isinstance(request, msg.FinishUpdate):
            self._staged = request.version
            result = msg.UpdateFinished(self.probe, 0.01, self.live)
        elif isinstance(request, msg.Evaluate):
            accuracy = {task: TaskAccuracy(10, 0.5, 0.0, 4.0) for task in Task}
            result = msg.Evaluated(Evaluation(request.version, accuracy))
        self.send(msg.Reply(id, result))

    def _close_held(self) -> None:
        """Nothing leaves while the weights that are live are unproven."""
        if self._leaving or self._proven != self._staged:
            return
        held, self._held = self._held, []
        for ticket in held:
            assert ticket.min_version <= self._proven
            if self.last_batch is not None and ticket.id.batch > self.last_batch:
                self._held.append(ticket)
            else:
                self.close_ticket(ticket, version=min(self._proven, ticket.id.batch))


class FourCalls:
    """A sender that makes the four calls, as vLLM's trainer engines do, and moves nothing."""

    sums: ClassVar = {"a": (1, 2), "b": (3, 4)}

    def __init__(self, client: StreamWeightSyncClient, *, point_to_point: bool = True) -> None:
        self.point_to_point = point_to_point
        self.client = client
        self.connected: list[list[str]] = []
        self.fault: Exception | None = None

    def connect(self) -> None:
        self.connected.append([member.name for member in self.client.members])
        self.client.init_weight_transfer_engine({"format": 1, "rank_offset": 1})

    def close(self) -> None:
        pass

    def begin(self, version: int) -> Callable[[], SendStats]:
        return partial(self.send, version)

    def send(self, version: int) -> SendStats:
        self.client.start_weight_update()
        self.client.update_weights({"version": version})
        if self.fault is not None:
            raise self.fault
        self.client.finish_weight_update(str(version))
        return SendStats(0, 0.0, 0.0, 0.0, 0.0, calls=3)
