"""A rollout worker as the worker pool knows it, and how tickets are dealt to several."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from shared.episodes import Ticket, TicketId


@dataclass(frozen=True, slots=True)
class Member:
    """One incarnation of a rollout worker. Who can name the incarnation is taken for it."""

    name: str
    incarnation: int = field(repr=False)


@dataclass(slots=True)
class Worker:
    """peer: its connection; gone: since when something could not be sent there, until it says hello again
    heard: when it last sent anything, seconds
    version: the newest weights that it has been shown to have; None for a newcomer, which gets no work
    open: tickets that it works on
    """

    member: Member
    peer: bytes = field(repr=False)
    heard: float
    gone: float | None = None
    version: int | None = None
    open: set[TicketId] = field(default_factory=set)


@dataclass(slots=True)
class Turnover:
    """What has come and gone: workers brought to the weights, those that left, tickets issued again for it.

    tickets_closed: those that were taken, by the name of the worker that closed them
    """

    workers_joined: int = 0
    workers_lost: int = 0
    tickets_reissued: int = 0
    tickets_closed: dict[str, int] = field(default_factory=dict)


def deal(waiting: deque[Ticket], workers: Collection[Worker], limit: int) -> dict[bytes, list[Ticket]]:
    """Take tickets off the queue's front, each for the worker with the fewest open, at most `limit` for one, by peer.

    A ticket is only for a worker that has been shown to have its `min_version`.
    """
    dealt: dict[bytes, list[Ticket]] = {}
    while waiting:
        ticket = waiting[0]
        able = [
            worker
            for worker in workers
            if worker.version is not None and worker.version >= ticket.min_version and len(worker.open) < limit
        ]
        if not able:
            break
        worker = min(able, key=lambda worker: len(worker.open))
        worker.open.add(ticket.id)
        dealt.setdefault(worker.peer, []).append(waiting.popleft())
    return dealt
