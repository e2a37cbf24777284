"""What each part of the stream costs by itself, in one process, without sockets."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.bench.wire_ends import VOCABULARY, Sizes, made_ticket, make_collector
from learner.journal import Journal, Took
from shared.messages import MAX_TICKETS_PER_MESSAGE
from shared.ticket_wire import TicketFrame, encode_ticket

PASSES = 3
PARTS = ("encode", "decode", "check", "journal", "collect")


def parts(sizes: Sizes, folder: Path) -> dict[str, float]:
    """CPU seconds of each part for one ticket: the median of several passes over a batch."""
    found = [_once(sizes, folder / f"parts {number}") for number in range(PASSES)]
    return {part: statistics.median(each[part] for each in found) for part in PARTS}


def frames_of(sizes: Sizes) -> list[bytes]:
    """The frames of a batch's closed tickets, in order."""
    rng = np.random.default_rng(0)
    tickets = make_collector(sizes.config()).open_through(0, 0)
    return [encode_ticket(ticket.id.index, made_ticket(ticket, sizes, rng)) for ticket in tickets]


def in_messages(frames: Sequence[bytes], most_bytes: int) -> list[list[bytes]]:
    """As a worker sends them whose tickets close at once: each message as full as it may be."""
    messages: list[list[bytes]] = []
    size = 0
    for frame in frames:
        size += len(frame)
        if not messages or size > most_bytes or len(messages[-1]) >= MAX_TICKETS_PER_MESSAGE:
            messages.append([])
            size = len(frame)
        messages[-1].append(frame)
    return messages


def _once(sizes: Sizes, journal_file: Path) -> dict[str, float]:
    collector = make_collector(sizes.config())
    rng = np.random.default_rng(0)
    tickets = collector.open_through(0, 0)
    made = [made_ticket(ticket, sizes, rng) for ticket in tickets]
    journal = Journal(journal_file)
    cost: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        began = time.thread_time()
        result = work()
        cost[part] = (time.thread_time() - began) / len(tickets)
        return result

    gc.collect()
    frames = timed("encode", lambda: [encode_ticket(i, closed) for i, closed in enumerate(made)])
    closed = timed("decode", lambda: [TicketFrame.read(frame).closed(VOCABULARY) for frame in frames])
    timed("check", lambda: [collector.check(each) for each in closed])
    messages = in_messages(frames, sizes.batch_kib * 2**10)

    def write() -> list[int]:
        positions: list[int] = []
        for message in messages:
            at = len(positions)
            entries = zip(tickets[at:], closed[at:], message, strict=False)
            records = [
                (Took(each.id, ticket.seed, "rollout-0", each.newest_version), frame) for ticket, each, frame in entries
            ]
            positions += journal.append_tickets(records)
        return positions

    positions = timed("journal", write)

    def collect() -> None:
        for each, position in zip(closed, positions, strict=True):
            collector.take(each, position)

    timed("collect", collect)
    journal.close()
    journal_file.unlink()
    return cost
