"""Where the learner's ranks find each other: at one address of this machine; torch's own way listens at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import Store, TCPStore, register_rendezvous_handler

# An `init_method`: as env://, but rank 0 listens at MASTER_ADDR alone. Who reaches the store may write to it.
AT_MASTER_ADDRESS = "primezero://"


def _rendezvous(url: str, timeout: timedelta = timedelta(minutes=5), **_: object) -> Iterator[tuple[Store, int, int]]:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listener = None
    if rank == 0:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((address, port), family=family).detach()
    yield TCPStore(address, port, ranks, rank == 0, timeout, master_listen_fd=listener), rank, ranks
    raise RuntimeError("the learner's ranks meet once")


register_rendezvous_handler(AT_MASTER_ADDRESS.removesuffix("://"), _rendezvous)
