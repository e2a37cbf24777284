"""Small things that the processes of a run do: keep what they write to themselves, log, and not wait for ever."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from shared.config_placement import is_loopback
from shared.errors import PlacementError, PrimezeroError
from shared.processes import log_to_stderr

# Those below are Ray's, where a cluster's machines are joined by hand.
LOWEST_PORT = 20_000
PORTS_TRIED = 20


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
    log_to_stderr()


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """What is raised within leaves its traceback in this process's log, and goes on."""
    try:
        yield
    except Exception:
        logging.getLogger(__name__).exception("this process ends with an error")
        raise


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


def killed_for_memory() -> int:
    """How many processes the kernel has ended for want of memory: of this container or else, of this machine."""
    for file in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            counts = dict(line.split(" ", 1) for line in Path(file).read_text(encoding="ascii").splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this address that nobody listens at now. PlacementError where it is no address of this machine.

    None, if possible, that the kernel gives by itself to whoever asks for any: who is to listen at it takes a while.
    """
    lasting = range(LOWEST_PORT, _first_passing_port())
    candidates = random.SystemRandom().sample(lasting, min(PORTS_TRIED, len(lasting)))
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        for candidate in candidates:
            with contextlib.suppress(OSError):
                return _bound_port(family, host, candidate)
        return _bound_port(family, host, 0)
    except OSError as error:
        raise PlacementError(
            f"nothing can listen at {host} on this machine ({error.strerror or error}): set placement.host to an "
            "address of it that the other machines reach"
        ) from error


def _bound_port(family: socket.AddressFamily, host: str, port: int) -> int:
    with socket.socket(family) as probe:
        probe.bind((host, port))
        bound: int = probe.getsockname()[1]
        return bound


def _first_passing_port() -> int:
    """The lowest of those that the kernel gives to connections, and to whoever listens at any port."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0])


def listen_towards(host: str) -> None:
    """Have gloo and NCCL, in this process and its children, listen at the interface that leads to `host` alone.

    PlacementError where none does.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        raise PlacementError(
            f"from the machine {socket.gethostname()} no way leads to {host}, where the first learner rank listens "
            f"({error.strerror or error}): set placement.host to an address of its machine that this one reaches"
        ) from error
    there = psutil.net_if_addrs()
    interface = _interface_of(own, there)
    if interface is None:
        listed = "; ".join(f"{name}: {', '.join(each.address for each in there[name])}" for name in sorted(there))
        raise PlacementError(
            f"the machine {socket.gethostname()} reaches {host} from its address {own}, which is no network "
            f"interface's, as gloo and NCCL need it ({listed}): set placement.host to an address that leads through one"
        )
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"  # this very one, and none whose name goes on


def _interface_of(own: str, there: Mapping[str, Sequence[Any]]) -> str | None:
    """The name of the interface that has this address."""
    for name, addresses in there.items():
        if any(each.address.partition("%")[0] == own for each in addresses):
            return name
    loopback = (name for name, addresses in there.items() if any(is_loopback(each.address) for each in addresses))
    return next(loopback, None) if is_loopback(own) else None


def keep_to(cores: Collection[int]) -> None:
    """Have every thread of this process, and all that they start, run on these cores alone."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)
