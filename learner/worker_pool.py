"""The rollout workers as the learner sees them: who is there, what they work on, calls to them."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from learner.collector import Batch, Collector
from shared import messages as msg
from shared.config import Config
from shared.episodes import Ticket, TicketId
from shared.errors import MessageError, PrimezeroError, StreamTimeoutError, WorkerFailedError
from shared.transport import StreamServer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker must have in common with the learner."""

    model: str
    tokenizer: str
    environment: str


@dataclass(slots=True)
class _Worker:
    name: str
    incarnation: int
    open: set[TicketId] = field(default_factory=set)


@dataclass(slots=True)
class _PendingCall:
    peers: set[bytes]
    results: dict[str, msg.Result] = field(default_factory=dict)


class WorkerPool:
    """Deals tickets to workers as credit, collects what they close, and calls them.

    Workers join before the first weight sync: a later one would sample from old weights.

    Messages are handled on the stream's I/O thread; everything else is called by the trainer's. One
    lock guards it all. Every wait has a timeout, and ends at once when a worker has failed.
    """

    def __init__(self, endpoint: str, config: Config, identity: Identity, collector: Collector) -> None:
        self._config = config
        self._identity = identity
        self._collector = collector
        self._changed = threading.Condition()
        self._workers: dict[bytes, _Worker] = {}
        self._waiting: deque[Ticket] = deque()
        self._calls: dict[int, _PendingCall] = {}
        self._call_ids = itertools.count()
        self._failure: PrimezeroError | None = None
        self._joining = True
        with self._changed:  # a worker may greet before the server is assigned
            self._server = StreamServer(
                endpoint,
                self._handle,
                max_message_bytes=config.stream.max_message_mib * 2**20,
                on_failure=self._stream_failed,
            )

    @property
    def rejected(self) -> dict[str, int]:
        """Refused messages by reason."""
        return dict(self._server.rejected)

    def wait_for_workers(self, count: int, timeout_s: float) -> None:
        """Until `count` workers have been welcomed.

        Raises StreamTimeoutError, or WorkerFailedError when one fails first.
        """
        self._wait(
            lambda: len(self._workers) >= count,
            timeout_s,
            lambda: f"{len(self._workers)} of {count} rollout workers connected; see logs/rollout-*.log",
        )
        with self._changed:
            self._joining = False

    def open_through(self, version: int, last_batch: int) -> None:
        """Open and deal out every batch up to `last_batch` that `version` may sample."""
        with self._changed:
            self._waiting.extend(self._collector.open_through(version, last_batch))
            self._deal()

    def wait_for_batch(self, number: int) -> Batch:
        """Batch `number`, released.

        Raises StreamTimeoutError when no ticket of it closes for `stream.batch_timeout_s`.
        """
        self._wait(
            lambda: self._collector.is_complete(number),
            self._config.stream.batch_timeout_s,
            lambda: "{} of {} tickets of batch {} closed, then none; see logs/rollout-*.log".format(
                *self._collector.progress(number), number
            ),
            progress=lambda: self._collector.progress(number)[0],
        )
        with self._changed:
            return self._collector.release(number)

    def start_call(self, request: msg.Request, workers: Sequence[str] | None = None) -> int:
        """Send a request to the named workers, or to all; `finish_call` takes the returned id."""
        with self._changed:
            peers = {p for p, w in self._workers.items() if workers is None or w.name in workers}
            id = next(self._call_ids)
            self._calls[id] = _PendingCall(peers)
            for peer in peers:
                self._server.send(peer, msg.Call(id, request))
            return id

    def finish_call(self, id: int, timeout_s: float, what: str = "a call") -> dict[str, msg.Result]:
        """The results by worker.

        Raises WorkerFailedError when a worker says that it failed, StreamTimeoutError after `timeout_s`.
        """
        call = self._calls[id]
        try:
            self._wait(
                lambda: len(call.results) == len(call.peers),
                timeout_s,
                lambda: f"{len(call.results)} of {len(call.peers)} workers answered {what}; see logs/rollout-*.log",
            )
        finally:
            with self._changed:
                del self._calls[id]
        for name, result in call.results.items():
            if isinstance(result, msg.CallFailed):
                raise WorkerFailedError(f"rollout worker {name}: {result.reason}")
        return call.results

    def call(self, request: msg.Request, timeout_s: float) -> dict[str, msg.Result]:
        """`start_call` to all workers, then `finish_call`."""
        return self.finish_call(self.start_call(request), timeout_s)

    def tell(self, message: msg.Message) -> None:
        """Send a message to all workers."""
        with self._changed:
            for peer in self._workers:
                self._server.send(peer, message)

    def first_worker(self) -> str:
        """The name of the worker that evaluates."""
        with self._changed:
            return min(worker.name for worker in self._workers.values())

    def close(self) -> None:
        """Send the workers home and close the stream."""
        self.tell(msg.Bye())
        self._server.close()

    def _wait(
        self,
        condition: Callable[[], bool],
        timeout_s: float,
        what: Callable[[], str],
        progress: Callable[[], int] = lambda: 0,
    ) -> None:
        """Until `condition`; the time starts anew whenever `progress` changes."""
        with self._changed:
            seen, deadline = progress(), time.monotonic() + timeout_s
            while not condition():
                if self._failure is not None:
                    raise self._failure
                if progress() != seen:
                    seen, deadline = progress(), time.monotonic() + timeout_s
                left = deadline - time.monotonic()
                if left <= 0:
                    raise StreamTimeoutError(f"after {timeout_s:g} s: {what()}")
                self._changed.wait(left)

    def _fail(self, error: PrimezeroError) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    # --- on the I/O thread ---

    def _stream_failed(self, error: Exception) -> None:
        self._fail(WorkerFailedError(f"the learner's end of the stream failed: {error!r}"))

    def _handle(self, peer: bytes, message: msg.Message, buffers: Sequence[msg.Frame]) -> None:
        with self._changed:
            if isinstance(message, msg.Hello):
                self._welcome(peer, message)
            elif peer not in self._workers:
                raise MessageError(f"{type(message).__name__} before a greeting")
            else:
                self._handle_known(peer, message, buffers)
            self._changed.notify_all()

    def _handle_known(self, peer: bytes, message: msg.Message, buffers: Sequence[msg.Frame]) -> None:
        match message:
            case msg.Closed():
                self._collector.close(msg.decode_closed(message, buffers))
                self._workers[peer].open.discard(message.id)
                self._server.send(peer, msg.Ack(message.sequence))
                self._deal()
            case msg.Reply():
                call = self._calls.get(message.id)
                if call is None or peer not in call.peers:
                    raise MessageError("a reply to no call")
                call.results[self._workers[peer].name] = message.result
            case msg.Failed():
                self._fail(WorkerFailedError(f"rollout worker {self._workers[peer].name}: {message.reason}"))
            case _:
                raise MessageError(f"a worker may not send {type(message).__name__}")

    def _welcome(self, peer: bytes, hello: msg.Hello) -> None:
        ours, theirs = self._identity, Identity(hello.model, hello.tokenizer, hello.environment)
        if hello.protocol != msg.PROTOCOL_VERSION:
            raise MessageError(f"protocol version {hello.protocol}, the learner speaks {msg.PROTOCOL_VERSION}")
        for part in ("model", "tokenizer", "environment"):
            if getattr(ours, part) != getattr(theirs, part):
                raise MessageError(f"the worker has another {part} than the learner")
        if not self._joining:
            raise MessageError("the run has begun; a worker cannot join any more")
        if peer in self._workers or any(worker.name == hello.worker for worker in self._workers.values()):
            raise MessageError(f"a rollout worker named {hello.worker} is already here")
        self._workers[peer] = _Worker(hello.worker, hello.incarnation)
        log.info("rollout worker %s joined", hello.worker)
        self._server.send(peer, msg.Welcome(lineage=self._collector.lineage))
        self._deal()

    def _deal(self) -> None:
        """Give waiting tickets to the workers with the fewest open ones, within their credit."""
        limit = self._config.rollout.max_open_tickets
        dealt: dict[bytes, list[Ticket]] = {}
        while self._waiting and self._workers:
            peer, worker = min(self._workers.items(), key=lambda item: len(item[1].open))
            if len(worker.open) >= limit:
                break
            ticket = self._waiting.popleft()
            worker.open.add(ticket.id)
            dealt.setdefault(peer, []).append(ticket)
        for peer, tickets in dealt.items():
            self._server.send(peer, msg.Work(tuple(tickets)))
