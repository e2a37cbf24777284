"""Who gets into the stream, who does not, and what either hears of it. Over real sockets."""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
from dataclasses import replace

import pytest
import zmq

from launch.processes import free_port
from shared import messages as msg
from shared.errors import ConfigError, HandshakeError, MessageError
from shared.transport import StreamClient, StreamServer, check_address, make_keys
from shared.transport.rejections import Rejections

MIB = 2**20


class Stream:
    """A server over tcp, which knows one client's keys."""

    def __init__(self) -> None:
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.keys, self.client_keys = make_keys()
        self.inbox: queue.Queue = queue.Queue()
        self.server = self.serve()

    def serve(self) -> StreamServer:
        def fail(error):
            raise error

        def handle(peer, message, buffers):
            if isinstance(message, msg.Ack):
                raise MessageError(f"no acks here: {message.sequences}")
            self.inbox.put((peer, message))

        return StreamServer(self.endpoint, handle, max_message_bytes=MIB, on_failure=fail, keys=self.keys)

    def client(self, keys) -> StreamClient:
        return StreamClient(self.endpoint, max_message_bytes=MIB, keys=keys)

    async def rejects(self, *reasons: str) -> None:
        while set(self.server.rejected) != set(reasons):
            await asyncio.sleep(0.01)


@pytest.fixture
def stream():
    stream = Stream()
    yield stream
    stream.server.close()


async def exchange(stream: Stream, client: StreamClient) -> None:
    await client.send(msg.encode(msg.Failed("over here")))
    peer, message = await asyncio.to_thread(stream.inbox.get, timeout=60)
    assert message == msg.Failed("over here")
    stream.server.send(peer, msg.Bye())
    assert await client.receive(60) == msg.Bye()


async def test_with_the_runs_keys_messages_go_both_ways(stream):
    client = stream.client(stream.client_keys)
    await exchange(stream, client)
    assert not stream.server.rejected
    client.close()


async def test_an_unknown_key_is_refused_counted_and_told(stream):
    _, foreign = make_keys()
    client = stream.client(replace(foreign, server=stream.keys.public))
    sending = asyncio.create_task(client.send(msg.encode(msg.Alive())))
    with pytest.raises(HandshakeError, match="does not know this worker's key"):
        await asyncio.wait_for(client.watch_handshakes(), 60)
    await stream.rejects("a peer with an unknown key")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    client.close()
    honest = stream.client(stream.client_keys)
    await exchange(stream, honest)
    honest.close()
    assert stream.inbox.empty()


async def test_keys_of_another_run_are_refused_and_told_once_it_has_lasted(stream, monkeypatch):
    monkeypatch.setattr("shared.transport.client.HANDSHAKE_PATIENCE_S", 0.3)
    _, foreign = make_keys()
    client = stream.client(foreign)
    with pytest.raises(HandshakeError, match="breaks off every handshake"):
        await asyncio.wait_for(client.watch_handshakes(), 60)
    await stream.rejects("a peer with another server's key")
    client.close()


async def test_a_peer_without_a_key_is_refused_and_counted(stream):
    # ZMTP 3.1's greeting with mechanism NULL. libzmq itself would at times leave before the server has read it.
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    host, port = stream.endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as plain:
        plain.sendall(greeting)
        await stream.rejects("a peer without a key")
    assert stream.inbox.empty()


async def test_something_that_is_no_learner_at_the_address_is_an_error_of_the_worker(monkeypatch):
    monkeypatch.setattr("shared.transport.client.HANDSHAKE_PATIENCE_S", 0.3)
    context = zmq.Context()
    other = context.socket(zmq.ROUTER)  # it speaks, but shows no key
    port = other.bind_to_random_port("tcp://127.0.0.1")
    client = StreamClient(f"tcp://127.0.0.1:{port}", max_message_bytes=MIB, keys=make_keys()[1])
    with pytest.raises(HandshakeError, match=r"another program at its port \(stream.endpoint\)"):
        await asyncio.wait_for(client.watch_handshakes(), 60)
    client.close()
    other.close()
    context.term()


async def test_a_client_finds_a_server_that_is_started_again(stream):
    client = stream.client(stream.client_keys)
    watching = asyncio.create_task(client.watch_handshakes())
    await exchange(stream, client)
    stream.server.close()
    await asyncio.sleep(0.3)
    stream.server = stream.serve()
    await exchange(stream, client)
    assert not watching.done()
    watching.cancel()
    client.close()


def test_no_socket_over_tcp_without_keys_nor_keys_without_tcp(tmp_path):
    keys, client_keys = make_keys()
    options = {"max_message_bytes": MIB}
    for endpoint, server_keys, worker_keys in (
        (f"tcp://127.0.0.1:{free_port()}", None, None),
        (f"ipc://{tmp_path}/s", keys, client_keys),
    ):
        with pytest.raises(ValueError, match="keys over tcp"):
            StreamServer(endpoint, lambda *_: None, on_failure=lambda _: None, keys=server_keys, **options)
        with pytest.raises(ValueError, match="keys over tcp"):
            StreamClient(endpoint, keys=worker_keys, **options)


def test_secrets_are_not_shown():
    keys, client_keys = make_keys()
    assert keys.secret.decode() not in repr(keys)
    assert client_keys.secret.decode() not in repr(client_keys)
    assert len({keys.secret, client_keys.secret, *(each.secret for each in make_keys())}) == 4


def test_an_address_that_is_taken_is_named(stream):
    for listen in (check_address, lambda endpoint: stream.serve()):
        with pytest.raises(ConfigError, match=rf"{stream.endpoint}: .*in use.*--stream.endpoint"):
            listen(stream.endpoint)
    with pytest.raises(ConfigError, match=r"cannot listen at tcp://192.0.2.77:5555"):
        check_address("tcp://192.0.2.77:5555")
    check_address(f"tcp://127.0.0.1:{free_port()}")
    check_address("auto")


async def test_ipv6_addresses_do(stream):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    stream.server.close()
    try:
        check_address(endpoint := f"tcp://[::1]:{free_port()}")
    except ConfigError:
        pytest.skip("no IPv6 here")
    stream.endpoint = endpoint
    stream.server = stream.serve()
    client = stream.client(stream.client_keys)
    await exchange(stream, client)
    client.close()


def test_a_socket_file_is_its_users_alone(tmp_path):
    def serve() -> StreamServer:
        return StreamServer(f"ipc://{tmp_path}/s", lambda *_: None, max_message_bytes=MIB, on_failure=lambda _: None)

    server = serve()
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    server.close()
    tmp_path.chmod(0o750)
    with pytest.raises(ConfigError, match="must be yours alone"):
        serve()


async def test_a_peer_that_never_reads_is_given_up_and_nothing_piles_up(stream):
    client = stream.client(stream.client_keys)
    await client.send(msg.encode(msg.Alive()))
    peer, _ = await asyncio.to_thread(stream.inbox.get, timeout=60)
    gone = []
    stream.server._on_gone = gone.append
    client.close()
    context = zmq.Context()
    deaf = context.socket(zmq.DEALER)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.setsockopt(zmq.LINGER, 0)
    deaf.curve_serverkey, deaf.curve_publickey, deaf.curve_secretkey = (
        stream.client_keys.server,
        stream.client_keys.public,
        stream.client_keys.secret,
    )
    deaf.connect(stream.endpoint)
    deaf.send(msg.encode(msg.Alive())[0])
    peer, _ = await asyncio.to_thread(stream.inbox.get, timeout=60)
    for _ in range(2000):
        stream.server.send(peer, msg.Call(1, msg.InitTransfer({"filler": "x" * 20_000})))
    while peer not in gone:
        await asyncio.sleep(0.01)
    deaf.close()
    context.term()


def test_a_hundred_thousand_refusals_are_few_lines_and_an_exact_count(caplog):
    rejections = Rejections()
    with caplog.at_level(logging.WARNING):
        for number in range(100_000):
            rejections.count("a reason", f"a reason: {number}")
        assert len(caplog.records) == 8  # 1, 2, 3, 10, 100, … 100,000
        for number in range(100_000):
            rejections.count(f"reason {number}")
    assert rejections.counts["a reason"] == 100_000
    assert sum(rejections.counts.values()) == 200_000
    assert len(rejections.counts) <= 101
    assert len(caplog.records) < 250


def test_what_a_peer_says_makes_one_short_line(caplog):
    rejections = Rejections()
    rejections.count("x" * 10**6, "forged\nline \x1b[2J" + "y" * 10**6)
    assert max(map(len, rejections.counts)) <= 300
    assert len(caplog.records[0].getMessage()) < 1000
    assert "\n" not in caplog.records[0].getMessage()


async def test_a_message_of_endless_frames_is_refused_as_one(stream):
    client = stream.client(stream.client_keys)
    await client.send([b""] * 50_000)
    refused = await client.receive(60)
    assert isinstance(refused, msg.Refused)
    await exchange(stream, client)
    assert sum(stream.server.rejected.values()) == 1
    client.close()
