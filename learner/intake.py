"""What the learner does with a message of closed tickets: checks each, writes down together what is new and good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from learner.collector import Collector
from learner.journal import Journal, Took
from learner.members import Worker
from shared.episodes import ClosedTicket, TicketId
from shared.errors import MessageError
from shared.ticket_wire import Frame, TicketFrame


@dataclass(slots=True)
class StreamCost:
    """What the stream has cost.

    tickets, messages, bytes: closed tickets that came, good or bad, the messages they came in, and their bytes
    cpu_s: CPU seconds of the learner's thread that reads, checks, writes down and answers; all messages, of any kind
    worker_cpu_s: what workers say they have spent on writing and sending closed tickets
    """

    tickets: int = 0
    messages: int = 0
    bytes: int = 0
    cpu_s: float = 0.0
    worker_cpu_s: float = 0.0


@dataclass(slots=True)
class Taken:
    """What became of a message's tickets.

    new: how many are on record from now on
    safe: sequence numbers of those that can be acknowledged, since they are on record now, or were before
    outdated: how many are of an earlier lineage, and are dropped
    faults: of all others, each its own
    """

    new: int = 0
    safe: list[int] = field(default_factory=list)
    outdated: int = 0
    faults: list[MessageError] = field(default_factory=list)


class Intake:
    """Takes closed tickets into journal and collector. Not thread-safe: the worker pool locks around it."""

    def __init__(self, collector: Collector, journal: Journal) -> None:
        self._collector = collector
        self._journal = journal

    def take(self, worker: Worker, frames: Sequence[Frame]) -> Taken:
        """Take the tickets of a worker's message.

        A ticket is recorded before it counts, and all of a message with one write. A bad one costs nothing but itself.
        Raises what the journal raises; then none has been taken.
        """
        taken = Taken()
        new: dict[TicketId, tuple[ClosedTicket, Took, Frame]] = {}
        for frame in frames:
            try:
                written = TicketFrame.read(frame)
                id = written.header.id
                if id.lineage < self._collector.lineage:
                    taken.outdated += 1
                    continue
                if id in worker.open:
                    if id not in new:
                        new[id] = self._checked(worker, written)
                elif not self._collector.is_closed(id):
                    raise MessageError("a closed ticket that its worker was not given")
                taken.safe.append(written.header.sequence)
            except MessageError as fault:
                taken.faults.append(fault)
        if new:
            positions = self._journal.append_tickets([(took, frame) for _, took, frame in new.values()])
            for (closed, _, _), position in zip(new.values(), positions, strict=True):
                self._collector.take(closed, position)
                worker.open.discard(closed.id)
            taken.new = len(new)
        return taken

    def _checked(self, worker: Worker, written: TicketFrame) -> tuple[ClosedTicket, Took, Frame]:
        closed = written.closed(self._collector.vocabulary)
        newest = closed.newest_version
        if worker.version is None or newest > worker.version:
            raise MessageError(f"a token of weights that its worker has not been shown to have: version {newest}")
        ticket = self._collector.check(closed)
        return closed, Took(closed.id, ticket.seed, worker.member.name, newest), written.frame
