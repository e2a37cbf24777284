"""Which workers the learner takes, and what one is told that has come back on another connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from learner.calls import Calls
from learner.collector import Collector
from learner.members import Worker
from shared import messages as msg
from shared.errors import MessageError


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker must have in common with the learner."""

    model: str
    tokenizer: str
    environment: str


def check_hello(hello: msg.Hello, ours: Identity) -> None:
    """MessageError where a worker does not match, which says in what."""
    if hello.protocol != msg.PROTOCOL_VERSION:
        raise MessageError(
            f"the worker speaks another protocol version: {hello.protocol}, the learner {msg.PROTOCOL_VERSION}"
        )
    for part in ("model", "tokenizer", "environment"):
        if getattr(ours, part) != getattr(hello, part):
            raise MessageError(f"the worker has another {part} than the learner")


def missed(worker: Worker, collector: Collector, calls: Calls) -> Iterator[msg.Message]:
    """What was said to a worker, and may not have arrived: all that it has yet to do."""
    yield msg.Welcome(collector.lineage, worker.member.incarnation)
    if worker.version is not None:
        yield msg.ProbePassed(worker.version)
    if worker.open:
        yield msg.Work(tuple(collector.issued(id) for id in sorted(worker.open)))
    yield from calls.asked_of(worker.member)
