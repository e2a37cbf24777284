"""The learner's end of the stream."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import zmq

from shared.errors import MessageError
from shared.messages import MAX_FRAMES, Ack, Message, Refused, decode, encode
from shared.ticket_wire import Frame
from shared.transport.rejections import Rejections, printable
from shared.transport.security import Guard, ServerKeys, cannot_listen, check_private, needs_keys
from shared.transport.sockets import set_up

TICK_S = 1.0
# Of one connection: an honest worker reads and is read without end, and has at most its tickets under way.
UNSENT_MESSAGES = 1000
UNREAD_MESSAGES = 1000
# Between two rounds of sending: nobody who floods the socket keeps the others from being answered.
FRAMES_AT_ONCE = 256

log = logging.getLogger(__name__)

Handler = Callable[[bytes, Message, Sequence[Frame]], None]


class StreamServer:
    """The learner's end. Messages arrive at `handler(peer, message, buffers)` on the I/O thread.

    A message that does not decode, or that the handler refuses with MessageError, is counted in
    `rejected` by its reason (the error's words before the first colon), logged, and answered with `Refused`; so are,
    without an answer, connections that fail to show the right key. Any other error of the handler goes to `on_failure`
    and ends the thread. On the same thread `on_gone(peer)` is told that a message could not be sent, for want of a
    connection or because the peer does not read, and `on_tick()` is called every second.

    A peer is a connection: a worker that connects again has another name here, so nothing that was
    under way on the old connection can be taken for the new one's. Nobody can take over a name that
    is in use (ROUTER_HANDOVER stays off).

    What a peer can make this process keep is bounded: messages waiting either way, their size, the frames that are
    read of one. Not bounded is what libzmq keeps of a message whose last frame never comes: only who has the key, or
    is this user, can send that.

    keys: for tcp, and only there
    Raises ConfigError when the address cannot be bound, or an ipc socket's folder is not private.
    """

    def __init__(
        self,
        endpoint: str,
        handler: Handler,
        *,
        max_message_bytes: int,
        on_failure: Callable[[Exception], None],
        on_gone: Callable[[bytes], None] = lambda peer: None,
        on_tick: Callable[[], None] = lambda: None,
        keys: ServerKeys | None = None,
    ) -> None:
        needs_keys(endpoint, keys)
        file = check_private(endpoint)
        self._rejections = Rejections()
        self._handler = handler
        self._on_failure = on_failure
        self._on_gone = on_gone
        self._on_tick = on_tick
        self._max_message_bytes = max_message_bytes
        self._cpu_s = 0.0
        self._outbox: queue.SimpleQueue[tuple[bytes, Message]] = queue.SimpleQueue()
        self._closing = False
        self._ended = False
        self._wake_lock = threading.Lock()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        set_up(self._socket, endpoint)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, UNSENT_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, UNREAD_MESSAGES)
        self._guard = Guard(self._socket, keys, self.count)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise cannot_listen(endpoint, str(error)) from error
        if file is not None:
            file.chmod(0o600)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="stream-server", daemon=True)
        self._thread.start()

    @property
    def rejected(self) -> Counter[str]:
        """What was refused or dropped, by reason."""
        return self._rejections.counts

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the I/O thread up to now; without ZeroMQ's own, which writes to and reads from the kernel."""
        return self._cpu_s

    def send(self, peer: bytes, message: Message) -> None:
        """Queue a message for a peer; from any thread. That it cannot be sent is no error, but told to `on_gone`.

        Once the server has failed or is closed, messages go nowhere.
        """
        self._outbox.put((peer, message))
        if threading.current_thread() is not self._thread:  # which sends by itself what it has queued
            self._wake_up()

    def refuse(self, peer: bytes, errors: Sequence[MessageError]) -> None:
        """Count each fault of a message by its kind, and answer with the first; on the I/O thread."""
        for error in errors:
            self.count(str(error).partition(":")[0], f"{error}, from peer {peer.hex()}")
        self.send(peer, Refused(printable(str(errors[0]))))

    def count(self, reason: str, detail: str = "") -> None:
        """One more in `rejected`, logged with its detail; on the I/O thread."""
        self._rejections.count(reason, detail)

    def close(self) -> None:
        """Send what is queued, then stop."""
        if not self._closing:
            self._closing = True
            self._wake_up()
            self._thread.join(timeout=5)

    def _wake_up(self) -> None:
        with self._wake_lock:
            if not self._ended:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._socket, self._wake, *self._guard.sockets):
            poller.register(source, zmq.POLLIN)
        ticked = time.monotonic()
        try:
            while True:
                ready = dict(poller.poll(round(1000 * TICK_S)))
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    if self._closing:
                        self._flush()
                        break
                self._guard.attend()
                if self._socket in ready:
                    self._receive()
                self._cpu_s = time.thread_time()  # before an answer, upon which somebody may ask for it
                self._flush()
                self._cpu_s = time.thread_time()
                if time.monotonic() - ticked >= TICK_S:
                    self._on_tick()
                    ticked = time.monotonic()
        except Exception as error:
            log.exception("the stream server failed")
            self._on_failure(error)
        finally:
            self._close_sockets()
            with self._wake_lock:
                self._ended = True
                os.close(self._wake)

    def _close_sockets(self) -> None:
        self._socket.close()
        self._guard.close()
        self._context.term()

    def _flush(self) -> None:
        for peer, message in self._queued():
            try:
                self._socket.send_multipart([peer, *encode(message)], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                log.debug("peer %s cannot be sent to: %s", peer.hex(), error)
                self._on_gone(peer)

    def _queued(self) -> list[tuple[bytes, Message]]:
        """What is to be sent, in order, but for one acknowledgement to each peer, where the first of several stood."""
        queued: list[tuple[bytes, Message]] = []
        acknowledged: dict[bytes, list[int]] = {}
        while not self._outbox.empty():
            peer, message = self._outbox.get()
            if not isinstance(message, Ack):
                queued.append((peer, message))
            elif peer not in acknowledged:
                acknowledged[peer] = list(message.sequences)
                queued.append((peer, message))
            else:
                acknowledged[peer] += message.sequences
        return [(p, Ack(tuple(acknowledged[p])) if isinstance(m, Ack) else m) for p, m in queued]

    def _receive(self) -> None:
        read = 0
        while read < FRAMES_AT_ONCE:
            try:
                peer, frames, size = self._read()
            except zmq.Again:
                return
            read += 1 + len(frames)
            try:
                if size > self._max_message_bytes:
                    raise MessageError(f"a message of more than stream.max_message_mib: {size} bytes")
                message, buffers = decode(frames)
                self._handler(peer, message, buffers)
            except MessageError as error:
                self.refuse(peer, [error])

    def _read(self) -> tuple[bytes, list[Frame], int]:
        """A peer, the frames of a message, not copied, and their bytes; of too much, just enough to see that."""
        peer = frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        frames: list[Frame] = []
        size = 0
        while frame.more:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            size += len(frame)
            if len(frames) <= MAX_FRAMES and size <= self._max_message_bytes:
                frames.append(frame.buffer)
        return peer.bytes, frames, size
