"""A rollout worker as the worker pool knows it, and how tickets are dealt to several."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from shared import messages as msg
from shared.episodes import Ticket, TicketId


@dataclass(frozen=True, slots=True)
class Member:
    """One incarnation of a rollout worker, on one connection."""

    name: str
    incarnation: int
    peer: bytes = field(repr=False)


@dataclass(slots=True)
class Worker:
    """heard: when it last sent anything, seconds
    version: the newest weights that it has been shown to have; None for a newcomer, which gets no work
    open: tickets that it works on
    """

    member: Member
    heard: float
    version: int | None = None
    open: set[TicketId] = field(default_factory=set)


@dataclass(slots=True)
class PendingCall:
    """A call: what it asks, who has yet to answer, and the answers."""

    what: str
    waiting: set[Member]
    results: dict[Member, msg.Result] = field(default_factory=dict)


@dataclass(slots=True)
class Turnover:
    """What has come and gone: workers brought to the weights, those that left, tickets issued again for it."""

    workers_joined: int = 0
    workers_lost: int = 0
    tickets_reissued: int = 0


def deal(waiting: deque[Ticket], workers: Collection[Worker], limit: int) -> dict[Member, list[Ticket]]:
    """Take tickets off the queue's front, each for the worker with the fewest open, at most `limit` for one.

    A ticket is only for a worker that has been shown to have its `min_version`.
    """
    dealt: dict[Member, list[Ticket]] = {}
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
        dealt.setdefault(worker.member, []).append(waiting.popleft())
    return dealt
