"""What one incarnation of a rollout worker has been given, and has yet to hand in, whatever becomes of connections."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable

from shared import messages as msg
from shared.episodes import ClosedTicket, Ticket, TicketId
from shared.ticket_wire import encode_ticket

ANSWERS_KEPT = 16


class Session:
    """The worker's memory of its conversation with the learner: all that a new connection needs to go on.

    A ticket is begun once and kept, closed, until it is acknowledged; so there are never more than the learner lets be
    open. A call is begun once, and its answer kept, since the learner asks again when it has not got it.

    lineage: what the learner has welcomed this incarnation into on the present connection; None: nothing is to be sent
    resumes: it has been welcomed before
    """

    def __init__(self) -> None:
        self.incarnation = secrets.randbits(63)
        self.lineage: int | None = None
        self.resumes = False
        self._sequence = 0
        self._begun: set[TicketId] = set()
        self._closed: dict[int, tuple[TicketId, bytes]] = {}
        self._running: set[int] = set()
        self._answers: OrderedDict[int, msg.Result] = OrderedDict()

    def welcomed(self, lineage: int) -> list[bytes]:
        """From now on it is listened to; the frames of the closed tickets to send again, in order."""
        self.lineage, self.resumes = lineage, True
        return [frame for _, frame in self._closed.values()]

    def begin(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        """Those that are new, which are now begun."""
        new = [ticket for ticket in tickets if ticket.id not in self._begun]
        self._begun.update(ticket.id for ticket in new)
        return new

    def close(self, closed: ClosedTicket) -> bytes:
        """The frame of a closed ticket, which is kept."""
        frame = encode_ticket(self._sequence, closed)
        self._closed[self._sequence] = (closed.id, frame)
        self._sequence += 1
        return frame

    def acknowledged(self, sequences: Iterable[int]) -> None:
        """The learner has these closed tickets; it may say so again."""
        for sequence in sequences:
            if (kept := self._closed.pop(sequence, None)) is not None:
                self._begun.discard(kept[0])

    def begin_call(self, id: int) -> bool:
        """Whether the call is new, and is now begun."""
        if id in self._running or id in self._answers:
            return False
        self._running.add(id)
        return True

    def answer(self, id: int, result: msg.Result) -> None:
        """A call has ended; so many answers are kept as there can be calls that the learner waits for, and more."""
        self._running.discard(id)
        self._answers[id] = result
        while len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)

    def answer_of(self, id: int) -> msg.Result | None:
        """What came of a call, if it has ended."""
        return self._answers.get(id)
