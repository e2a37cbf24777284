"""The rollout workers as the learner sees them: who is there, what they work on, calls to them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from learner.calls import Calls
from learner.collector import Batch, Collector
from learner.greeting import Identity, check_hello, missed
from learner.intake import Intake, StreamCost
from learner.journal import Journal, Released
from learner.members import Member, Turnover, Worker, deal
from shared import messages as msg
from shared.config import Config
from shared.episodes import Ticket
from shared.errors import MessageError, PrimezeroError, StreamTimeoutError, WeightSyncError, WorkerFailedError
from shared.ticket_wire import Frame
from shared.transport import ServerKeys, StreamServer

LATE_S = 5.0
BEAT_S = 1.0
# A worker says something every two seconds: whose connection is broken, and who lives, is back by then.
RECONNECT_S = 5.0
WORKERS_KEPT = 1000
STRANGERS_KEPT = 1000

log = logging.getLogger(__name__)


class WorkerPool:
    """Deals tickets to workers as credit, collects what they close, and calls them.

    Workers come and go. A newcomer gets tickets once `prove` says which weights it has been shown to have. One that
    reports failure, is silent for `stream.worker_timeout_s`, has not said hello RECONNECT_S after it could not be sent
    to, or says hello as another incarnation has left: its open tickets are issued again, ahead of all others. A
    connection on which nobody has said hello is asked to; what else comes on it is counted in `rejected` and dropped.
    Whoever names an incarnation that is here resumes it: it keeps its tickets, and is told again what it may have
    missed.

    Messages are handled on the stream's I/O thread; everything else is called by the trainer's, and what a weight sync
    needs by that of the sync. One lock guards it all. Every wait has a timeout, and its error names the last failure
    of a worker.

    clock: seconds, for all timeouts; beat: called at every wait's beginning, and every second of it
    """

    def __init__(
        self,
        endpoint: str,
        config: Config,
        identity: Identity,
        collector: Collector,
        journal: Journal,
        *,
        clock: Callable[[], float] = time.monotonic,
        beat: Callable[[], None] = lambda: None,
        keys: ServerKeys | None = None,
    ) -> None:
        self._beat = beat
        self._config = config
        self._identity = identity
        self._collector = collector
        self._journal = journal
        self._intake = Intake(collector, journal)
        self._clock = clock
        self._changed = threading.Condition()
        self._workers: dict[bytes, Worker] = {}
        self._greeted: set[bytes] = set()
        self._sent_away: dict[Member, str] = {}
        self._waiting: deque[Ticket] = deque()
        self._calls = Calls()
        self._failure: PrimezeroError | None = None
        self._last_loss: str | None = None
        self._attention = False
        self._turnover = Turnover()
        self._cost = StreamCost()
        self._cpu_before_s = 0.0
        self._swept = clock()
        with self._changed:  # a worker may greet before the server is assigned
            self._server = StreamServer(
                endpoint,
                self._handle,
                max_message_bytes=config.stream.max_message_mib * 2**20,
                on_failure=self._stream_failed,
                on_gone=self._gone,
                on_tick=self._sweep,
                keys=keys,
            )

    @property
    def rejected(self) -> dict[str, int]:
        """Refused and dropped messages by reason."""
        return dict(self._server.rejected)

    def members(self) -> list[Member]:
        """Every worker that has been welcomed, by name."""
        with self._changed:
            return self._named(worker.member for worker in self._workers.values())

    def newcomers(self) -> list[Member]:
        """Those that have not been shown to have any weights yet."""
        with self._changed:
            return self._named(worker.member for worker in self._workers.values() if worker.version is None)

    def ready(self, version: int | None = None) -> list[Member]:
        """Those that work; with `version`, those of exactly this one."""
        with self._changed:
            at_work = [worker for worker in self._workers.values() if worker.version is not None]
            return self._named(worker.member for worker in at_work if version in (None, worker.version))

    def turnover(self) -> Turnover:
        """What came and went since the last time."""
        with self._changed:
            turnover, self._turnover = self._turnover, Turnover()
            return turnover

    def stream_cost(self) -> StreamCost:
        """What the stream has cost since the last time."""
        with self._changed:
            cost, self._cost = self._cost, StreamCost()
            cpu_s = self._server.cpu_s
            cost.cpu_s, self._cpu_before_s = cpu_s - self._cpu_before_s, cpu_s
            return cost

    def wait_for_workers(self, count: int, timeout_s: float) -> None:
        """Until `count` workers have been welcomed; StreamTimeoutError when that takes too long."""
        self._wait(
            lambda: len(self._workers) >= count,
            timeout_s,
            lambda: f"{len(self._workers)} of {count} rollout workers connected (rollout.start_timeout_s)",
        )

    def wait_for_newcomer(self, timeout_s: float) -> None:
        """Until there is a worker to be brought to the weights; StreamTimeoutError when that takes too long."""
        self._wait(lambda: bool(self.newcomers()), timeout_s, lambda: "no rollout worker is left, and none came back")

    def open_through(self, version: int, last_batch: int) -> None:
        """Open and deal out every batch up to `last_batch` that `version` may sample."""
        with self._changed:
            self._waiting.extend(self._collector.open_through(version, last_batch))
            self._deal()

    def snapshot(self) -> tuple[dict[str, Any], int]:
        """The collector's state, and the end of the journal at that moment."""
        with self._changed:
            return self._collector.state(), self._journal.end

    def wait_for_batch(self, number: int, attend: Callable[[], None] | None = None) -> Batch:
        """Batch `number`, released.

        attend: called on this thread, without the lock, whenever a worker has come or left meanwhile, or
            `call_attention` has been
        Raises StreamTimeoutError when for `stream.batch_timeout_s` no ticket of it closes and no worker joins.
        """
        self._wait(
            lambda: self._collector.is_complete(number),
            self._config.stream.batch_timeout_s,
            lambda: "{} of {} tickets of batch {} closed, then none (stream.batch_timeout_s)".format(
                *self._collector.progress(number), number
            ),
            progress=lambda: (self._collector.progress(number)[0], self._turnover.workers_joined),
            attend=attend,
        )
        with self._changed:
            batch = self._collector.release(number)
            self._journal.append(Released(self._collector.lineage, number, batch.positions))
            return batch

    def call_attention(self) -> None:
        """Have whoever waits for a batch, or is about to, `attend` to what has happened elsewhere."""
        with self._changed:
            self._attention = True
            self._changed.notify_all()

    def start_call(self, requests: Mapping[Member, msg.Request]) -> int:
        """Send each member its request; `finish_call` takes the returned id. Who has left has failed."""
        with self._changed:
            workers = {worker.member: worker for worker in self._workers.values()}
            id = self._calls.begin(requests, here=set(workers))
            for member in filter(workers.__contains__, requests):
                self._server.send(workers[member].peer, msg.Call(id, requests[member]))
            return id

    def is_settled(self, id: int) -> bool:
        """Whether `finish_call` would return at once."""
        with self._changed:
            return not self._calls[id].waiting

    def finish_call(
        self, id: int, timeout_s: float, attend: Callable[[], None] | None = None
    ) -> dict[Member, msg.Result]:
        """The results of those that succeeded.

        Who fails, or does not answer in time, is sent away, to start anew; who leaves meanwhile is not waited for.
        attend: as for `wait_for_batch`
        """
        call = self._calls[id]
        try:
            self._wait(lambda: not call.waiting, timeout_s, lambda: "a call is not answered", attend=attend)
        except StreamTimeoutError:
            for member in list(call.waiting):
                self.send_away(member, f"{call.what} was not answered within {timeout_s:g} s")
        finally:
            with self._changed:
                self._calls.end(id)
        for member, result in call.results.items():
            if isinstance(result, msg.CallFailed):
                self.send_away(member, f"{call.what}: {result.reason}")
        return {m: result for m, result in call.results.items() if not isinstance(result, msg.CallFailed)}

    def call(self, requests: Mapping[Member, msg.Request], timeout_s: float) -> dict[Member, msg.Result]:
        """`start_call`, then `finish_call`."""
        return self.finish_call(self.start_call(requests), timeout_s)

    def send_away(self, member: Member, reason: str) -> None:
        """Tell a worker to end its process, since what it does cannot be relied on any more. It may have left."""
        with self._changed:
            if (worker := self._find(member)) is not None:
                self._server.send(worker.peer, msg.Refused(reason))
                self._sent_away[member] = reason  # it may have to be told again
                self._leave(worker.peer, reason)

    def check_forwards(self, members: Iterable[Member], version: int) -> None:
        """WeightSyncError where `version` is older than what a member has been shown to have."""
        with self._changed:
            for member in members:
                worker = self._find(member)
                if worker is not None and worker.version is not None and worker.version > version:
                    raise WeightSyncError(
                        f"weight version {version} for {member.name}, which already has {worker.version}"
                    )

    def prove(self, members: Iterable[Member], version: int) -> None:
        """These have been shown to have the learner's weights of `version`: they may work, or go on."""
        members = list(members)
        with self._changed:
            self.check_forwards(members, version)
            for worker in filter(None, map(self._find, members)):
                self._turnover.workers_joined += worker.version is None
                worker.version = version
                self._server.send(worker.peer, msg.ProbePassed(version))
            self._deal()

    def last_loss(self) -> str:
        """For the end of an error's message: which worker left last, and why."""
        return "" if self._last_loss is None else f"; the last worker that left: {self._last_loss}"

    def send_home(self) -> None:
        """The run is over: the workers leave."""
        with self._changed:
            for peer in self._workers:
                self._server.send(peer, msg.Bye())

    def close(self) -> None:
        """Close the stream, and end every wait. Workers that were not sent home wait for another learner."""
        with self._changed:
            self._failure = self._failure or WorkerFailedError("the learner has closed its end of the stream")
            self._changed.notify_all()
        self._server.close()

    def _wait(
        self,
        condition: Callable[[], bool],
        timeout_s: float,
        what: Callable[[], str],
        progress: Callable[[], object] = lambda: None,
        attend: Callable[[], None] | None = None,
    ) -> None:
        """Until `condition`; the time starts anew whenever `progress` changes."""
        with self._changed:
            seen, deadline = progress(), self._clock() + timeout_s
        while True:
            self._beat()
            with self._changed:
                if condition():
                    return
                if self._failure is not None:
                    raise self._failure
                if progress() != seen:
                    seen, deadline = progress(), self._clock() + timeout_s
                attending = attend is not None and self._attention
                if attending:
                    self._attention = False
                else:
                    left = deadline - self._clock()
                    if left <= 0:
                        raise StreamTimeoutError(
                            f"after {timeout_s:g} s: {what()}{self.last_loss()}; see logs/rollout-*.log"
                        )
                    self._changed.wait(min(left, BEAT_S))
            if attending and attend is not None:
                attend()

    def _find(self, member: Member) -> Worker | None:
        return next((worker for worker in self._workers.values() if worker.member == member), None)

    @staticmethod
    def _named(members: Iterable[Member]) -> list[Member]:
        return sorted(members, key=lambda member: member.name)

    def _leave(self, peer: bytes, reason: str) -> None:
        worker = self._workers.pop(peer)
        member = worker.member
        self._last_loss = f"{member.name}: {reason}"
        log.warning("rollout worker %s left: %s; %d open tickets", member.name, reason, len(worker.open))
        again = [self._collector.reissue(id) for id in sorted(worker.open)]
        self._waiting.extendleft(reversed(again))
        self._turnover.workers_lost += worker.version is not None
        self._turnover.tickets_reissued += len(again)
        self._calls.without(member)
        self._attention = True
        self._deal()
        self._changed.notify_all()

    def _deal(self) -> None:
        dealt = deal(self._waiting, self._workers.values(), self._config.rollout.max_open_tickets)
        for peer, tickets in dealt.items():
            self._server.send(peer, msg.Work(tuple(tickets)))

    # --- on the I/O thread ---

    def _stream_failed(self, error: Exception) -> None:
        with self._changed:
            if not isinstance(error, PrimezeroError):
                error = WorkerFailedError(f"the learner's end of the stream failed: {error!r}")
            self._failure = self._failure or error
            self._changed.notify_all()

    def _gone(self, peer: bytes) -> None:
        with self._changed:
            if (worker := self._workers.get(peer)) is not None and worker.gone is None:
                log.info("the connection of rollout worker %s is broken", worker.member.name)
                worker.gone = self._clock()

    def _sweep(self) -> None:
        """Give up whoever has been silent for too long."""
        timeout_s = self._config.stream.worker_timeout_s
        with self._changed:
            now, before = self._clock(), self._swept
            self._swept = now
            for peer, worker in list(self._workers.items()):
                if now - before > timeout_s / 2:
                    worker.heard = now  # it was this process that stood still
                elif worker.gone is not None and now - worker.gone >= RECONNECT_S:
                    self._leave(peer, "its connection is gone")
                elif now - worker.heard > timeout_s:
                    self._leave(peer, f"not heard of for {timeout_s:g} s (stream.worker_timeout_s)")
                elif now - worker.heard > LATE_S:
                    self._server.send(peer, msg.Alive())  # `_gone` learns of a dead process

    def _handle(self, peer: bytes, message: msg.Message, frames: Sequence[Frame]) -> None:
        with self._changed:
            if isinstance(message, msg.Hello):
                self._welcome(peer, message)
                self._changed.notify_all()
            elif (worker := self._workers.get(peer)) is None:
                self._server.count(f"{type(message).__name__} of a worker that is not known")
                self._ask_to_greet(peer)
            else:
                worker.heard = self._clock()
                if worker.gone is not None:  # something that it was to be told is lost
                    self._ask_to_greet(peer)
                self._handle_known(worker, message, frames)

    def _ask_to_greet(self, peer: bytes) -> None:
        """Once on each connection: what was sent before the answer needs no other."""
        if peer not in self._greeted:
            if len(self._greeted) >= STRANGERS_KEPT:
                self._greeted.clear()
            self._greeted.add(peer)
            self._server.send(peer, msg.Greet())

    def _handle_known(self, worker: Worker, message: msg.Message, frames: Sequence[Frame]) -> None:
        match message:
            case msg.Closed(spent_s):
                self._close(worker, frames, spent_s)
            case msg.Reply():
                if not self._calls.answer(worker.member, message):
                    self._server.count("a reply to no call")
                self._changed.notify_all()
            case msg.Alive():
                pass
            case msg.Failed():
                self._leave(worker.peer, message.reason)
            case _:
                raise MessageError(f"a worker may not send {type(message).__name__}")

    def _close(self, worker: Worker, frames: Sequence[Frame], spent_s: float) -> None:
        self._cost.messages += 1
        self._cost.tickets += len(frames)
        self._cost.bytes += sum(map(len, frames))
        self._cost.worker_cpu_s += spent_s
        taken = self._intake.take(worker, frames)
        if taken.new:
            closed, name = self._turnover.tickets_closed, worker.member.name
            closed[name] = closed.get(name, 0) + taken.new
        for _ in range(taken.outdated):
            self._server.count("a closed ticket of an earlier lineage")
        if taken.faults:
            self._server.refuse(worker.peer, taken.faults)
        if taken.safe:
            self._server.send(worker.peer, msg.Ack(tuple(taken.safe)))
            self._deal()
            # Who waits for a batch sees by itself, every second, that it gets on.
            if self._collector.has_complete:
                self._changed.notify_all()

    def _welcome(self, peer: bytes, hello: msg.Hello) -> None:
        check_hello(hello, self._identity)
        member = Member(hello.worker, hello.incarnation)
        worker = self._find(member)
        if worker is None and hello.resumes:
            reason = self._sent_away.get(member)
            self._server.send(peer, msg.Refused(reason) if reason else msg.Forgotten(hello.incarnation))
            return
        for old in list(self._workers.values()):
            if old is not worker and (old.peer == peer or old.member.name == hello.worker):
                self._leave(old.peer, "it said hello anew")
        if worker is None and len(self._workers) >= WORKERS_KEPT:
            raise MessageError("the learner has all the workers that it can take")
        self._greeted.discard(peer)
        if worker is not None:
            self._resume(worker, peer)
            return
        self._workers[peer] = Worker(member, peer, self._clock())
        self._attention = True
        log.info("rollout worker %s is here", hello.worker)
        self._server.send(peer, msg.Welcome(self._collector.lineage, hello.incarnation))

    def _resume(self, worker: Worker, peer: bytes) -> None:
        """Go on with a worker on another connection: what was sent on the old one may not have arrived."""
        member = worker.member
        log.info("rollout worker %s has connected again; %d open tickets", member.name, len(worker.open))
        del self._workers[worker.peer]
        self._workers[peer] = worker
        worker.peer, worker.heard, worker.gone = peer, self._clock(), None
        for message in missed(worker, self._collector, self._calls):
            self._server.send(peer, message)
