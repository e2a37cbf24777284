import asyncio
import queue
import sys

import pytest
import zmq

from shared import messages as msg
from shared.errors import MessageError, StreamTimeoutError
from shared.transport import StreamClient, StreamServer
from shared.transport.sockets import set_up

MIB = 2**20


@pytest.fixture
def endpoint(tmp_path):
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def server(endpoint):
    """A server that queues what it is given and refuses Ack."""
    inbox: queue.Queue = queue.Queue()

    def handle(peer, message, buffers):
        if isinstance(message, msg.Ack):
            raise MessageError("no acks here")
        inbox.put((peer, message))

    failures: list[Exception] = []
    server = StreamServer(endpoint, handle, max_message_bytes=MIB, on_failure=failures.append)
    server.inbox, server.failures = inbox, failures
    yield server
    server.close()


@pytest.fixture
async def client(endpoint):
    client = StreamClient(endpoint, max_message_bytes=MIB)
    yield client
    client.close()


async def exchange(server, client):
    """One honest message each way."""
    await client.send(msg.encode(msg.Failed("over here")))
    peer, message = await asyncio.to_thread(server.inbox.get, timeout=60)
    assert message == msg.Failed("over here")
    server.send(peer, msg.Welcome(3, 1))
    assert await client.receive(60) == msg.Welcome(3, 1)


async def test_messages_go_both_ways(server, client):
    await exchange(server, client)


async def test_the_kernel_buffers_several_tickets_of_a_socket_file_and_decides_by_itself_over_tcp(server, client):
    for socket in (server._socket, client._socket):
        assert socket.getsockopt(zmq.SNDBUF) == socket.getsockopt(zmq.RCVBUF) == MIB
    with zmq.Context() as context, context.socket(zmq.DEALER) as other:
        set_up(other, "tcp://127.0.0.1:1")
        assert other.getsockopt(zmq.SNDBUF) == other.getsockopt(zmq.RCVBUF) == -1


async def test_nothing_to_receive_is_a_named_error(server, client):
    with pytest.raises(StreamTimeoutError, match="nothing from the learner within 0"):
        await client.receive(0.05)


async def test_refused_messages_are_counted_answered_and_survived(server, client):
    await client.send([b"\xc1 not msgpack"])
    assert isinstance(await client.receive(60), msg.Refused)
    await client.send(msg.encode(msg.Ack((1,))))
    assert await client.receive(60) == msg.Refused("no acks here")
    assert server.rejected["no acks here"] == 1
    assert sum(server.rejected.values()) == 2
    await exchange(server, client)


async def test_text_that_is_not_text_does_not_end_the_server(server, client):
    await client.send([b"\x82\xa4type\xa6Failed\xa6reason\xa2\xff\xff"])
    assert isinstance(await client.receive(60), msg.Refused)
    await exchange(server, client)
    assert server.failures == []


async def test_the_number_of_reasons_kept_is_bounded(server, client):
    for i in range(150):
        server.count(f"reason {i}")
    assert len(server.rejected) == 101
    assert server.rejected["other"] == 50


async def test_oversized_messages_do_not_reach_the_handler(server, client, endpoint):
    context = zmq.Context()
    foreign = context.socket(zmq.DEALER)
    foreign.setsockopt(zmq.LINGER, 0)
    foreign.connect(endpoint)
    foreign.send(b"x" * (2 * MIB))
    await exchange(server, client)
    foreign.close()
    context.term()
    assert server.inbox.empty()


async def test_a_peer_that_has_gone_does_not_stop_the_server(server, client):
    server.send(b"nobody", msg.Bye())
    await exchange(server, client)
    assert server.failures == []


async def test_a_bug_in_the_handler_is_reported(endpoint, client):
    failures: queue.Queue = queue.Queue()

    def handle(peer, message, buffers):
        raise RuntimeError("a bug")

    server = StreamServer(endpoint, handle, max_message_bytes=MIB, on_failure=failures.put)
    await client.send(msg.encode(msg.Bye()))
    error = await asyncio.to_thread(failures.get, timeout=60)
    assert str(error) == "a bug"
    server._thread.join(60)
    server.send(b"anybody", msg.Bye())  # nobody is there to send it, and nothing else is written to
    server.close()


@pytest.mark.parametrize("size", [65536, 3 * 65536])
async def test_large_frames_are_not_copied_on_either_side(endpoint, client, size):
    ticket, small = bytes(size), bytes(100)
    before = sys.getrefcount(ticket), sys.getrefcount(small)
    await client.send(msg.encode_closed([ticket, small]))  # it waits: there is no learner yet
    assert sys.getrefcount(ticket) > before[0], "ZeroMQ has the bytes themselves"
    assert sys.getrefcount(small) == before[1], "a copy costs less than keeping account"
    received: queue.Queue = queue.Queue()
    server = StreamServer(
        endpoint,
        lambda peer, message, tickets: received.put(tickets),
        max_message_bytes=MIB,
        on_failure=lambda error: None,
    )
    tickets = await asyncio.to_thread(received.get, timeout=60)
    assert [bytes(each) for each in tickets] == [ticket, small]
    assert all(isinstance(each.obj, zmq.Frame) for each in tickets), "views of ZeroMQ's memory"
    server.close()


async def test_a_message_that_is_too_large_in_all_its_frames_is_refused(server, client):
    await client.send(msg.encode_closed([bytes(MIB // 2 - 100)] * 2))
    _, message = await asyncio.to_thread(server.inbox.get, timeout=60)
    assert isinstance(message, msg.Closed)
    await client.send(msg.encode_closed([bytes(MIB // 2)] * 2))
    refused = await client.receive(60)
    assert "more than stream.max_message_mib" in refused.reason
    assert sum(server.rejected.values()) == 1
    await exchange(server, client)


async def test_acknowledgements_of_one_turn_are_one_message_and_nothing_else_changes_places(endpoint):
    def handle(peer, message, buffers):
        """All that is sent here is sent in one turn of the server's thread."""
        for answer in (msg.Greet(), msg.Ack((1,)), msg.Work(()), msg.Ack((2, 3)), msg.Bye(), msg.Ack((4,))):
            server.send(peer, answer)

    server = StreamServer(endpoint, handle, max_message_bytes=MIB, on_failure=lambda error: None)
    client = StreamClient(endpoint, max_message_bytes=MIB)
    await client.send(msg.encode(msg.Alive()))
    answers = [await client.receive(60) for _ in range(4)]
    assert answers == [msg.Greet(), msg.Ack((1, 2, 3, 4)), msg.Work(()), msg.Bye()]
    client.close()
    server.close()
