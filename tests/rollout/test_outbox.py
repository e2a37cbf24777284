"""What leaves together, and when."""

import asyncio

import pytest

from rollout.outbox import Outbox
from shared import messages as msg


class Sent(list):
    """What was sent: of each message the tickets, and what they are said to have cost."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: list[float] = []
        self.may_send = asyncio.Event()
        self.may_send.set()

    async def __call__(self, frames) -> None:
        await self.may_send.wait()
        message, tickets = msg.decode(frames)
        self.spent.append(message.spent_s)
        self.append(list(tickets))


@pytest.fixture
async def box():
    """Makes an outbox and what it sends."""
    running: list[asyncio.Task] = []

    def make(most_bytes: int, wait_s: float) -> tuple[Outbox, Sent]:
        sent = Sent()
        outbox = Outbox(sent, most_bytes=most_bytes, wait_s=wait_s)
        running.append(asyncio.create_task(outbox.run()))
        return outbox, sent

    yield make
    for task in running:
        task.cancel()


async def until(sent: Sent, count: int) -> None:
    async with asyncio.timeout(60):
        while len(sent) < count:
            await asyncio.sleep(0.001)


async def test_a_single_ticket_leaves_after_a_moment(box):
    outbox, sent = box(1000, 0.001)
    outbox.put(b"one")
    await until(sent, 1)
    assert sent == [[b"one"]]


async def test_what_closes_within_the_time_leaves_together_in_order(box):
    outbox, sent = box(1000, 0.05)
    for ticket in (b"a", b"b", b"c"):
        outbox.put(ticket)
        await asyncio.sleep(0)
    await until(sent, 1)
    outbox.put(b"d")
    await until(sent, 2)
    assert sent == [[b"a", b"b", b"c"], [b"d"]]


async def test_enough_bytes_leave_at_once_and_no_message_has_more_unless_one_ticket_has(box):
    outbox, sent = box(10, 1000)
    for ticket in (b"12345", b"1234", b"12", b"x" * 50):
        outbox.put(ticket)
    await until(sent, 3)
    assert sent == [[b"12345", b"1234"], [b"12"], [b"x" * 50]]
    outbox.put(b"12345")
    await asyncio.sleep(0.02)
    assert len(sent) == 3  # it waits for its time, or for more
    outbox.put(b"67890")
    await until(sent, 4)
    assert sent[3] == [b"12345", b"67890"]


async def test_as_many_tickets_as_a_message_may_have_leave_at_once(box):
    outbox, sent = box(10**6, 1000)
    for _ in range(msg.MAX_TICKETS_PER_MESSAGE):
        outbox.put(b"")
    await until(sent, 1)
    assert len(sent[0]) == msg.MAX_TICKETS_PER_MESSAGE


async def test_what_is_cleared_does_not_leave(box):
    outbox, sent = box(1000, 0.01)
    outbox.put(b"of an incarnation that is forgotten")
    outbox.clear()
    await asyncio.sleep(0.03)
    assert sent == []
    outbox.put(b"new")
    await until(sent, 1)
    assert sent == [[b"new"]]


async def test_what_comes_while_the_socket_takes_nothing_leaves_in_order_afterwards(box):
    outbox, sent = box(4, 0)
    sent.may_send.clear()
    for ticket in (b"1", b"2", b"3", b"4", b"5", b"6"):
        outbox.put(ticket)
        await asyncio.sleep(0.002)
    sent.may_send.set()
    await until(sent, 3)
    assert [ticket for message in sent for ticket in message] == [b"1", b"2", b"3", b"4", b"5", b"6"]


async def test_a_message_says_what_went_into_tickets_since_the_last(box):
    outbox, sent = box(1000, 0)
    outbox.spent(0.25)
    outbox.spent(0.5)
    outbox.put(b"one")
    await until(sent, 1)
    outbox.put(b"two")
    await until(sent, 2)
    assert sent.spent[0] == 0.75
    assert 0 < sent.spent[1] < 0.1  # the sending of the first
