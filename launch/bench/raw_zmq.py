"""Raw ZeroMQ between two processes, as the reference of the stream: frames of given sizes, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection

import zmq

from shared.transport import ClientKeys, ServerKeys

PATIENCE_MS = 60_000
Messages = Sequence[Sequence[bytes]]


class RawSender:
    """A DEALER that sends, in a process of its own, to a ROUTER in this one, which receives without copying.

    Messages go as in plain pyzmq: blocking `send_multipart`, without copying what is above its threshold, without
    asyncio, high-water marks or checks. The receiver answers the last message.
    """

    def __init__(self, endpoint: str, cargoes: Sequence[Messages], keys: tuple[ServerKeys, ClientKeys] | None) -> None:
        self._counts = [len(messages) for messages in cargoes]
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        if keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys[0].secret)
        self._socket.bind(endpoint)
        spawn = get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        arguments = (endpoint, cargoes, None if keys is None else keys[1], theirs)
        self._process = spawn.Process(target=_send, args=arguments, daemon=True)
        self._process.start()
        self._socket.recv_multipart()

    def round(self, cargo: int) -> float:
        """Move one of the cargoes once; seconds from the first message until the answer to the last is here."""
        self._pipe.send(cargo)
        for _ in range(self._counts[cargo]):
            frames = self._socket.recv_multipart(copy=False)
        self._socket.send_multipart([frames[0].bytes, b"all"])
        seconds: float = self._pipe.recv()
        return seconds

    def close(self) -> None:
        """End the process and close the socket."""
        self._pipe.send(None)
        self._process.join(10)
        self._process.kill()
        self._socket.close()
        self._context.term()


def _send(endpoint: str, cargoes: Sequence[Messages], keys: ClientKeys | None, pipe: Connection) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
    socket.setsockopt(zmq.SNDHWM, 0)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.connect(endpoint)
    socket.send(b"here")
    copies = [[max(map(len, message)) < zmq.COPY_THRESHOLD for message in messages] for messages in cargoes]
    while (cargo := pipe.recv()) is not None:
        begin = time.perf_counter()
        for message, copy in zip(cargoes[cargo], copies[cargo], strict=True):
            socket.send_multipart(message, copy=copy)
        socket.recv()
        pipe.send(time.perf_counter() - begin)
    socket.close()
    context.term()
