"""Small things that the processes of a run do: keep what they write to themselves, log, and not wait for ever."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from shared.errors import PrimezeroError


def be_private() -> None:
    """Files made from here on, by this process and its children, are for this user alone.

    A run is gone on with only from what no other user can have written.
    """
    os.umask(0o077)


def log_to_file(path: Path) -> None:
    """Send this process's stdout and stderr, and those of its children, to a file; log there too."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )


def within(limit_s: float, what: str, call: Callable[[], object]) -> None:
    """Make a call that has no time limit of its own. PrimezeroError when it is not done in time: it is left alone then.

    what: what is being done, for the error
    """
    raised: list[BaseException] = []

    def make() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=make, name="limited-call", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise PrimezeroError(
            f"{what}: Ray did not answer within {limit_s:g} s; is one of its processes stopped, or the machine out of "
            "memory? Given again, the same command goes on from the last checkpoint"
        )
    if raised:
        raise raised[0]


def free_port() -> int:
    """A port of the loopback address that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
