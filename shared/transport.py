"""The stream's sockets: a ROUTER for the learner, a DEALER for each rollout worker. The only user of zmq.

Neither side blocks for ever: the server runs its own I/O thread, the client is asyncio; closing drops what
could not be sent within a second.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio

from shared.errors import MessageError, StreamTimeoutError
from shared.messages import Closed, Frame, Message, Refused, decode, encode

LINGER_MS = 1000
COPY_THRESHOLD = 65536
REASONS_KEPT = 100
TICK_S = 1.0
UNSENT_MESSAGES = 1000

log = logging.getLogger(__name__)

Handler = Callable[[bytes, Message, Sequence[Frame]], None]


class StreamServer:
    """The learner's end. Messages arrive at `handler(peer, message, buffers)` on the I/O thread.

    A message that does not decode, or that the handler refuses with MessageError, is counted in
    `rejected` by its reason, logged, and answered with `Refused`. Any other error of the handler
    goes to `on_failure` and ends the thread. On the same thread `on_gone(peer)` is told that a
    message could not be sent for want of a connection, and `on_tick()` is called every second, after
    all that had arrived by then.

    A peer is a connection: a worker that connects again has another name here, so nothing that was
    under way on the old connection can be taken for the new one's. Nobody can take over a name that
    is in use (ROUTER_HANDOVER stays off).
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
    ) -> None:
        self.rejected: Counter[str] = Counter()
        self._handler = handler
        self._on_failure = on_failure
        self._on_gone = on_gone
        self._on_tick = on_tick
        self._outbox: queue.SimpleQueue[tuple[bytes, list[Frame]]] = queue.SimpleQueue()
        self._closing = False
        self._ended = False
        self._wake_lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Tickets bound what is in flight; a high-water mark on top could only drop or block.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(endpoint)
        self._thread = threading.Thread(target=self._run, name="stream-server", daemon=True)
        self._thread.start()

    def send(self, peer: bytes, message: Message) -> None:
        """Queue a message for a peer; from any thread. That a peer has gone is no error, but told to `on_gone`.

        Once the server has failed or is closed, messages go nowhere.
        """
        self._outbox.put((peer, encode(message)))
        self._wake_up()

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
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        ticked = time.monotonic()
        try:
            while True:
                ready = dict(poller.poll(round(1000 * TICK_S)))
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    self._flush()
                    if self._closing:
                        break
                if self._socket in ready:
                    self._receive()
                if time.monotonic() - ticked >= TICK_S:
                    self._on_tick()
                    ticked = time.monotonic()
        except Exception as error:
            log.exception("the stream server failed")
            self._on_failure(error)
        finally:
            self._socket.close()
            self._context.term()
            with self._wake_lock:
                self._ended = True
                os.close(self._wake)

    def _flush(self) -> None:
        while not self._outbox.empty():
            peer, frames = self._outbox.get()
            try:
                self._socket.send_multipart([peer, *frames])
            except zmq.ZMQError as error:
                log.info("peer %s is gone: %s", peer.hex(), error)
                self._on_gone(peer)

    def _receive(self) -> None:
        while True:
            try:
                peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                message, buffers = decode([frame.buffer for frame in frames])
                self._handler(peer.bytes, message, buffers)
            except MessageError as error:
                self.count(str(error).partition(":")[0])
                log.warning("refused a message of peer %s: %s", peer.bytes.hex(), error)
                self.send(peer.bytes, Refused(str(error)))

    def count(self, reason: str) -> None:
        """One more in `rejected`; on the I/O thread."""
        # What a peer sends may shape the reason: the number of reasons kept is bounded.
        known = reason in self.rejected or len(self.rejected) < REASONS_KEPT
        self.rejected[reason if known else "other"] += 1


class StreamClient:
    """A rollout worker's end, for one asyncio loop. ZeroMQ reconnects by itself.

    What is sent while the learner is away waits, and arrives in order; past UNSENT_MESSAGES `send` waits too.
    """

    def __init__(self, endpoint: str, *, max_message_bytes: int) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.SNDHWM, UNSENT_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(endpoint)

    async def send(self, frames: Sequence[Frame]) -> None:
        """Send encoded frames; buffers above 64 KiB are not copied."""
        await self._socket.send_multipart(frames, copy=sum(map(len, frames)) < COPY_THRESHOLD)

    async def receive(self, timeout_s: float | None = None) -> Message:
        """The next message from the learner.

        Raises StreamTimeoutError when none comes in time, MessageError when it is malformed.
        """
        try:
            frames = await asyncio.wait_for(self._socket.recv_multipart(), timeout_s)
        except TimeoutError as error:
            raise StreamTimeoutError(f"nothing from the learner within {timeout_s:g} s; is it running?") from error
        message, _ = decode(frames)
        if isinstance(message, Closed):
            raise MessageError("the learner sent a closed ticket")
        return message

    def close(self) -> None:
        """Send what is queued, for at most a second, then stop."""
        self._socket.close()
        self._context.term()
