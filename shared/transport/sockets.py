"""What the sockets of both ends have in common."""

from __future__ import annotations

from typing import Any

import zmq

LINGER_MS = 1000
# The host at the other end is gone for good after IDLE + COUNT * INTERVAL seconds of silence. It is the kernel that
# answers, so a process that is stopped keeps its connection.
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 3
# The kernel's own 208 KiB is a few tickets: both ends would wake each other for each. TCP finds its size by itself.
IPC_BUFFER_BYTES = 2**20


def set_up(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Before it is bound or connected to `endpoint`.

    The kernel notices when the host at the other end has gone, and takes several tickets at once over a socket file.
    """
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT)
    if endpoint.startswith("ipc://"):
        socket.setsockopt(zmq.SNDBUF, IPC_BUFFER_BYTES)
        socket.setsockopt(zmq.RCVBUF, IPC_BUFFER_BYTES)
