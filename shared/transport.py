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
from collections import Counter
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio

from shared.errors import MessageError, StreamTimeoutError
from shared.messages import Closed, Frame, Message, Refused, decode, encode

LINGER_MS = 1000
COPY_THRESHOLD = 65536
REASONS_KEPT = 100

log = logging.getLogger(__name__)

Handler = Callable[[bytes, Message, Sequence[Frame]], None]


class StreamServer:
    """The learner's end. Messages arrive at `handler(peer, message, buffers)` on the I/O thread.

    A message that does not decode, or that the handler refuses with MessageError, is counted in
    `rejected` by its reason, logged, and answered with `Refused`. Any other error of the handler
    goes to `on_failure` and ends the thread.
    """

    def __init__(
        self, endpoint: str, handler: Handler, *, max_message_bytes: int, on_failure: Callable[[Exception], None]
    ) -> None:
        self.rejected: Counter[str] = Counter()
        self._handler = handler
        self._on_failure = on_failure
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
        """Queue a message for a peer; from any thread. A peer that has gone is logged, not an error.

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
        try:
            while True:
                ready = dict(poller.poll())
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    self._flush()
                    if self._closing:
                        break
                if self._socket in ready:
                    self._receive()
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
                log.warning("peer %s is gone: %s", peer.hex(), error)

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
                self._count(str(error).partition(":")[0])
                log.warning("refused a message of peer %s: %s", peer.bytes.hex(), error)
                self.send(peer.bytes, Refused(str(error)))

    def _count(self, reason: str) -> None:
        # What a peer sends may shape the reason: the number of reasons kept is bounded.
        known = reason in self.rejected or len(self.rejected) < REASONS_KEPT
        self.rejected[reason if known else "other"] += 1


class StreamClient:
    """A rollout worker's end, for one asyncio loop. ZeroMQ reconnects by itself."""

    def __init__(self, endpoint: str, *, max_message_bytes: int) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.SNDHWM, 0)
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
