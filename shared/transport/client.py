"""A rollout worker's end of the stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from shared.errors import HandshakeError, MessageError, StreamTimeoutError
from shared.messages import Closed, Message, decode
from shared.ticket_wire import Frame
from shared.transport.security import ClientKeys, needs_keys
from shared.transport.sockets import set_up

COPY_THRESHOLD = zmq.COPY_THRESHOLD
UNSENT_MESSAGES = 1000
# A connection may break within a handshake, and a tunnel accept it while the learner is away; but not for so long.
HANDSHAKE_PATIENCE_S = 30.0
_HANDSHAKES = (
    zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)


class StreamClient:
    """A rollout worker's end, for one asyncio loop. ZeroMQ reconnects by itself.

    What is sent while the learner is away waits, and arrives in order; past UNSENT_MESSAGES `send` waits too.

    keys: for tcp, and only there
    """

    def __init__(self, endpoint: str, *, max_message_bytes: int, keys: ClientKeys | None = None) -> None:
        needs_keys(endpoint, keys)
        self._endpoint = endpoint
        self._failing_since: float | None = None
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        set_up(self._socket, endpoint)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.SNDHWM, UNSENT_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        if keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        self._monitor = self._socket.get_monitor_socket(_HANDSHAKES)
        self._monitor.setsockopt(zmq.LINGER, 0)  # else one that nobody closes would keep whoever ends the context
        self._socket.connect(endpoint)

    async def send(self, frames: Sequence[Frame]) -> None:
        """Send encoded frames; those of COPY_THRESHOLD bytes or more are not copied, and may not change any more.

        Waits for ever where the other end has refused this one, which `watch_handshakes` says.
        """
        # copy=False leaves it to pyzmq to decide frame by frame, which takes time where all are small.
        await self._socket.send_multipart(frames, copy=max(map(len, frames)) < COPY_THRESHOLD)

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

    async def watch_handshakes(self) -> None:
        """For as long as the other end takes this one in, which is for ever; HandshakeError when it does not.

        ZeroMQ would not say so, and after some refusals not even try again.
        """
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())["event"]
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self._failing_since = None
            elif event == zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
                self._failing_since = self._failing_since or time.monotonic()
                if time.monotonic() - self._failing_since >= HANDSHAKE_PATIENCE_S:
                    raise self._refused(f"breaks off every handshake, for {HANDSHAKE_PATIENCE_S:g} s now")
            elif event == zmq.Event.HANDSHAKE_FAILED_AUTH:
                raise self._refused("does not know this worker's key")
            else:
                raise self._refused("does not speak as a learner of this run would")

    def close(self) -> None:
        """Send what is queued, for at most a second, then stop."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()

    def _refused(self, what: str) -> HandshakeError:
        return HandshakeError(
            f"who listens at {self._endpoint} {what}: keys are made for one run, when it is launched. Is that this "
            "run's learner, or another program at its port (stream.endpoint)?"
        )
