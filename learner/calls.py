"""Calls to rollout workers that have yet to be answered."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from learner.members import Member
from shared import messages as msg


@dataclass(slots=True)
class PendingCall:
    """A call: what it asks, what of whom, who has yet to answer, and the answers."""

    what: str
    requests: Mapping[Member, msg.Request]
    waiting: set[Member] = field(default_factory=set)
    results: dict[Member, msg.Result] = field(default_factory=dict)


class Calls:
    """Those under way, by their ids. Not thread-safe: the worker pool locks around it."""

    def __init__(self) -> None:
        self._calls: dict[int, PendingCall] = {}
        # Not from 0: a reply to a call of an earlier learner must not pass for one to ours.
        self._ids = itertools.count(secrets.randbits(48))

    def __getitem__(self, id: int) -> PendingCall:
        return self._calls[id]

    def begin(self, requests: Mapping[Member, msg.Request], here: set[Member]) -> int:
        """A new call, which waits for those that are `here`; its id."""
        id = next(self._ids)
        what = " and ".join(sorted({type(request).__name__ for request in requests.values()}))
        self._calls[id] = PendingCall(what, requests, waiting=requests.keys() & here)
        return id

    def end(self, id: int) -> None:
        """Nobody waits for it any more."""
        del self._calls[id]

    def answer(self, member: Member, reply: msg.Reply) -> bool:
        """Take an answer; False where nobody waits for it."""
        call = self._calls.get(reply.id)
        if call is None or member not in call.waiting:
            return False
        call.waiting.discard(member)
        call.results[member] = reply.result
        return True

    def without(self, member: Member) -> None:
        """This one has left, and will not answer."""
        for call in self._calls.values():
            call.waiting.discard(member)

    def asked_of(self, member: Member) -> Iterator[msg.Call]:
        """What a worker has yet to answer."""
        for id, call in self._calls.items():
            if member in call.waiting:
                yield msg.Call(id, call.requests[member])
