"""Who may connect to the stream: a private socket file, or CURVE keys made for one run."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from shared.errors import ConfigError

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"primezero"
UNKNOWN_KEY = "a peer with an unknown key"
NO_KEY = "a peer without a key"
OTHER_SERVER_KEY = "a peer with another server's key"
BROKEN_HANDSHAKE = "a malformed handshake"
ABANDONED_HANDSHAKE = "a handshake that was broken off"
_FAILED_HANDSHAKES = (
    zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)
_PROTOCOL_ERRORS: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: NO_KEY,
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: OTHER_SERVER_KEY,
}


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The learner's key pair, and the public keys that may connect. Each key is 40 characters of Z85."""

    public: bytes
    secret: bytes = field(repr=False)
    clients: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """The public key of the learner, and the pair of a run's workers."""

    server: bytes
    public: bytes
    secret: bytes = field(repr=False)


def make_keys() -> tuple[ServerKeys, ClientKeys]:
    """Fresh keys, for the two ends of one run's stream."""
    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    return (
        ServerKeys(server_public, server_secret, frozenset({client_public})),
        ClientKeys(server_public, client_public, client_secret),
    )


def check_address(endpoint: str) -> None:
    """ConfigError where a `tcp://host:port` endpoint cannot be listened at; any other kind is fine here."""
    if not endpoint.startswith("tcp://"):
        return
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as zmq does
            probe.bind(address[4])
            probe.listen()
    except OSError as error:
        raise cannot_listen(endpoint, error.strerror or str(error)) from error


def cannot_listen(endpoint: str, why: str) -> ConfigError:
    """The error for an address that is taken, or is none of this machine."""
    return ConfigError(
        f"the learner cannot listen at {endpoint}: {why}. Another port, or an address of this machine, is set with "
        "--stream.endpoint tcp://host:port; auto needs none"
    )


def check_private(endpoint: str) -> Path | None:
    """The socket file of an `ipc` endpoint. ConfigError where its folder lets others than this user in."""
    if not endpoint.startswith("ipc://"):
        return None
    file = Path(endpoint.removeprefix("ipc://"))
    folder = file.parent.stat()
    if folder.st_uid != os.getuid() or stat.S_IMODE(folder.st_mode) & 0o077:
        raise ConfigError(f"{file.parent}, which the stream's socket is to be in, must be yours alone: chmod 700 it")
    return file


def needs_keys(endpoint: str, keys: object) -> None:
    """ValueError for `tcp` without keys, and for keys where nothing would use them."""
    if endpoint.startswith("tcp://") != (keys is not None):
        raise ValueError("the stream has keys over tcp, and only there")


class Guard:
    """Decides which keys may connect to a server's socket, and hears of every handshake that fails.

    Everything happens on the thread of the socket: `sockets` are polled beside it, and `attend` sees to them. The
    decision fails closed: without this guard libzmq refuses everybody.

    refused: told the reason
    """

    def __init__(self, socket: zmq.Socket[bytes], keys: ServerKeys | None, refused: Callable[[str], None]) -> None:
        """Before the socket is bound."""
        self._refused = refused
        self._allowed = frozenset() if keys is None else frozenset(z85.decode(key) for key in keys.clients)
        self._monitor = socket.get_monitor_socket(_FAILED_HANDSHAKES)
        self._zap: zmq.Socket[bytes] | None = None
        if keys is not None:
            self._zap = socket.context.socket(zmq.REP)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(ZAP_ENDPOINT)
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """To be polled."""
        return [self._monitor] if self._zap is None else [self._monitor, self._zap]

    def attend(self) -> None:
        """See to all that waits at `sockets`."""
        with contextlib.suppress(zmq.Again):
            while self._zap is not None:
                self._decide(self._zap, self._zap.recv_multipart(zmq.NOBLOCK))
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if (reason := _failure(event["event"], event["value"])) is not None:
                self._refused(reason)

    def close(self) -> None:
        """After the socket has been closed."""
        for each in self.sockets:
            each.close(linger=0)

    def _decide(self, zap: zmq.Socket[bytes], request: list[bytes]) -> None:
        # RFC 27: version, request id, domain, address, identity, mechanism, credentials; libzmq itself is who asks.
        version, id, domain, _, _, mechanism, *credentials = request
        allowed = domain == ZAP_DOMAIN and mechanism == b"CURVE" and credentials[0] in self._allowed
        zap.send_multipart([version, id, b"200" if allowed else b"400", b"", b"", b""])


def _failure(event: int, value: int) -> str | None:
    match event:
        case zmq.Event.HANDSHAKE_FAILED_AUTH:
            return UNKNOWN_KEY
        case zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
            return _PROTOCOL_ERRORS.get(value, BROKEN_HANDSHAKE)
        case zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
            return ABANDONED_HANDSHAKE
    return None
