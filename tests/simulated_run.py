"""A run's tickets, versions and workers, event by event, without sockets, engines or clocks.

The pool and the collector are the real ones. Workers come, leave, and sample with the weights that they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from factories import make_closed
from fake_worker import LINEAGE, make_pool
from msgspec.structs import replace

import learner.worker_pool
from learner.collector import Batch
from learner.members import Member
from rollout.session import Session
from shared import messages as msg
from shared.episodes import ClosedTicket, Task, Ticket, TicketId, VersionSpan
from shared.errors import MessageError
from shared.ticket_wire import TicketFrame, encode_ticket

LAST_BATCH = 1000
NAMES = 3


class Wire:
    """In place of the stream server: what is sent waits to be delivered."""

    def __init__(self, *_: object, **__: object) -> None:
        self.rejected: Counter[str] = Counter()
        self.sent: list[tuple[bytes, msg.Message]] = []

    def send(self, peer: bytes, message: msg.Message) -> None:
        self.sent.append((peer, message))

    def count(self, reason: str) -> None:
        self.rejected[reason] += 1

    def refuse(self, peer: bytes, errors: Sequence[MessageError]) -> None:
        raise AssertionError(f"an honest worker was refused: {errors}")


@dataclass
class SimulatedWorker:
    """live: its engine's weights; proven: the newest that it may use; open: tickets, and the weights they began with

    session: the real one; connection: how often it has connected; broken: what either side says is lost
    """

    name: str
    session: Session = field(default_factory=Session)
    connection: int = 0
    broken: bool = False
    live: int = -1
    proven: int | None = None
    open: dict[TicketId, tuple[Ticket, int]] = field(default_factory=dict)
    closed: list[ClosedTicket] = field(default_factory=list)

    @property
    def peer(self) -> bytes:
        return f"{self.session.incarnation} {self.connection}".encode()


class SimulatedRun:
    """version: of the learner's weights, and the batch that it waits for; every: batches between syncs"""

    def __init__(self, seeds, *, max_staleness: int, every: int) -> None:
        self.every, self.max_staleness = every, max_staleness
        self._seeds = seeds
        self.connect(lineage=LINEAGE)
        self.workers: list[SimulatedWorker] = []
        self.version = 0
        self.batches: list[Batch] = []
        self._issued: dict[TicketId, Ticket] = {}
        self._copies = 0
        self._first: dict[TicketId, float] = {}
        self.sync()

    def connect(self, **place: object) -> None:
        """Have a pool of this place in the run."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learner.worker_pool, "StreamServer", Wire)
            settings = {"selfplay.max_staleness": self.max_staleness, "rollout.max_open_tickets": 4}
            self.pool = make_pool("nowhere", self._seeds, clock=lambda: 0.0, **place, **settings)
        self.wire: Wire = self.pool._server

    # --- events ---

    def join(self, which: int) -> None:
        """A worker, or the next incarnation of one that is here."""
        worker = SimulatedWorker(f"rollout-{which % NAMES}")
        self.workers = [w for w in self.workers if w.name != worker.name] + [worker]
        self._say_hello(worker)

    def fail(self, which: int) -> None:
        if self.workers:
            worker = self.workers.pop(which % len(self.workers))
            self._say(worker, msg.Failed("it was to be expected"))
            self.pool._gone(worker.peer)  # which is all that is heard of it where its connection is broken
            self._give_up()

    def vanish(self, which: int) -> None:
        if self.workers:
            self.pool._gone(self.workers.pop(which % len(self.workers)).peer)
            self._give_up()

    def cut(self, which: int) -> None:
        """A connection breaks; nobody knows yet."""
        if self.workers:
            self.workers[which % len(self.workers)].broken = True

    def give_up(self, _: int = 0) -> None:
        """The learner finds broken connections, and waits in vain."""
        for worker in self.workers:
            if worker.broken:
                self.pool._gone(worker.peer)
        self._give_up()

    def reconnect(self, which: int) -> None:
        """A broken connection is there again, and the worker, which has not noticed, says something."""
        broken = [worker for worker in self.workers if worker.broken]
        if broken:
            worker = broken[which % len(broken)]
            worker.broken, worker.connection = False, worker.connection + 1
            self._say(worker, msg.Alive())

    def bring_up(self, _: int = 0) -> None:
        """What the trainer does with newcomers."""
        new = self.pool.newcomers()
        self._update([w.peer for w in self.workers if self._member(w) in new and not w.broken], failing=None)

    def close(self, which: int) -> None:
        """Some worker closes a ticket, unless its weights are not proven yet."""
        able = [worker for worker in self.workers if worker.open and worker.live == worker.proven]
        if able:
            worker = able[which % len(able)]
            ticket, began = worker.open.pop(list(worker.open)[which % len(worker.open)])
            worker.closed.append(self._sampled(ticket, began, worker.live))
            self._send(worker, msg.encode_closed([worker.session.close(worker.closed[-1])]))

    def close_several(self, which: int) -> None:
        """Some worker closes several tickets at once, which leave in one message."""
        able = [worker for worker in self.workers if worker.open and worker.live == worker.proven]
        if able:
            worker = able[which % len(able)]
            frames = []
            for id in list(worker.open)[: 1 + which]:
                worker.closed.append(self._sampled(*worker.open.pop(id), worker.live))
                frames.append(worker.session.close(worker.closed[-1]))
            self._send(worker, msg.encode_closed(frames))

    def close_again(self, which: int) -> None:
        able = [worker for worker in self.workers if worker.closed and worker.session.lineage is not None]
        if able:
            worker = able[which % len(able)]
            again = encode_ticket(0, worker.closed[which % len(worker.closed)])
            self._send(worker, msg.encode_closed([again]))

    def train(self, which: int) -> None:
        """Train the batch, if it is complete; then sync, if it is time, perhaps losing a worker."""
        if self.pool._collector.is_complete(self.version):
            self.batches.append(self.pool.wait_for_batch(self.version))
            self.version += 1
            if self.version % self.every == 0:
                self.sync(failing=which if which > 5 else None)

    # --- what they are made of ---

    def sync(self, failing: int | None = None) -> None:
        self._update([worker.peer for worker in self.workers if not worker.broken], failing)
        before = dict(self._issued)
        self.pool.open_through(self.version, LAST_BATCH)
        opened = [slot.ticket for batch in self.pool._collector._open.values() for slot in batch]
        self._issued = {t.id: t for t in opened} | before
        self._deliver()

    def finish(self, batches: int) -> None:
        """Go on until so many batches are trained."""
        step = 0
        while len(self.batches) < batches:
            step += 1
            assert step < 2000, "the run does not get on"
            if not self.workers:
                self.join(0)
            self.reconnect(step)
            self.bring_up()
            self.close(step)
            self.train(0)

    def _update(self, peers: list[bytes], failing: int | None) -> None:
        updated = [worker for worker in self.workers if worker.peer in peers]
        for worker in updated:
            assert worker.live <= self.version
            worker.live = self.version
        if failing is not None:
            self.fail(failing)  # between finishing the update and the probe
        self.pool.prove([self._member(worker) for worker in updated], self.version)
        self._deliver()

    @staticmethod
    def _member(worker: SimulatedWorker) -> Member:
        return Member(worker.name, worker.session.incarnation)

    def _give_up(self) -> None:
        """After the grace of a broken connection."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learner.worker_pool, "RECONNECT_S", 0.0)
            self.pool._sweep()
        self._deliver()

    def _say_hello(self, worker: SimulatedWorker) -> None:
        incarnation, resumes = worker.session.incarnation, worker.session.resumes
        self._say(worker, msg.Hello(msg.PROTOCOL_VERSION, worker.name, incarnation, "m", "t", "e", resumes))

    def _say(self, worker: SimulatedWorker, message: msg.Message) -> None:
        self._send(worker, msg.encode(message))

    def _send(self, worker: SimulatedWorker, frames: Sequence[msg.Frame]) -> None:
        if not worker.broken and (worker.session.lineage is not None or len(frames) == 1):
            message, tickets = msg.decode(frames)
            for ticket in tickets:
                closed = TicketFrame.read(ticket).closed(100)
                if not self.pool._collector.is_closed(closed.id):
                    self._first[closed.id] = mark(closed)
            self.pool._handle(worker.peer, message, tickets)
            self._deliver()

    def _deliver(self) -> None:
        sent, self.wire.sent = self.wire.sent, []
        for peer, message in sent:
            worker = next((worker for worker in self.workers if worker.peer == peer and not worker.broken), None)
            if worker is None:
                continue
            match message:
                case msg.Greet():
                    worker.session.lineage = None
                    self._say_hello(worker)
                case msg.Forgotten():
                    worker.session, worker.proven = Session(), None
                    worker.open.clear()
                    worker.closed.clear()
                    self._say_hello(worker)
                case msg.Welcome(lineage, incarnation):
                    assert incarnation == worker.session.incarnation
                    if again := worker.session.welcomed(lineage):
                        self._send(worker, msg.encode_closed(again))
                case msg.Ack(sequences):
                    worker.session.acknowledged(sequences)
                case msg.ProbePassed(version):
                    worker.proven = version
                case msg.Work(tickets):
                    for ticket in worker.session.begin(tickets):
                        self._start(worker, ticket)
                case _:
                    raise AssertionError(f"an honest worker was told {message}")

    def _start(self, worker: SimulatedWorker, ticket: Ticket) -> None:
        assert worker.proven is not None, "a ticket for a worker that has not been shown to have any weights"
        assert worker.proven >= ticket.min_version
        known = [other for other in self.workers if self._member(other) in self.pool.members()]
        assert not any(ticket.id in other.open for other in known), "a ticket on two workers at once"
        worker.open[ticket.id] = (ticket, worker.live)

    def _sampled(self, ticket: Ticket, began: int, ended: int) -> ClosedTicket:
        """Its first token by the weights that were live when it was begun, its last by those at its end."""
        self._copies += 1
        closed = make_closed(ticket)
        spans = (VersionSpan(began, 0, 1), VersionSpan(ended, 1, 2)) if began < ended else (VersionSpan(ended, 0, 2),)
        logprobs = np.full(2, -self._copies, dtype=np.float32)

        def of(episode):
            return None if episode is None else replace(episode, spans=spans, behaviour_logprobs=logprobs)

        return replace(closed, proposal=of(closed.proposal), attempts=tuple(map(of, closed.attempts)))

    # --- what has to hold ---

    def check(self) -> None:
        """Each batch: every ticket once, the copy that came first; no token too old; nothing refused."""
        for number, batch in enumerate(self.batches):
            assert batch.number == number
            assert [t.id.index for t in batch.tickets] == list(range(2 * len(Task)))
            assert [mark(t) for t in batch.tickets] == [self._first[t.id] for t in batch.tickets]
        assert max(self.staleness(), default=0) <= self.max_staleness
        assert self.wire.rejected.keys() <= {"Alive of a worker that is not known"}  # on a new connection

    def staleness(self) -> list[int]:
        """Of every token that was trained on, span by span."""
        return [batch.number - span.version for batch in self.batches for e in batch.episodes for span in e.spans]

    def reissues(self) -> int:
        """Tickets of the trained batches that were not closed as they were first issued."""
        return sum(t != self._issued[t.id] for batch in self.batches for t in batch.issued)


def mark(closed: ClosedTicket) -> float:
    return float(closed.attempts[0].behaviour_logprobs[0])
