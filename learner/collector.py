"""The collector: issues each batch's tickets, takes closed ones, releases batches whole and in order.

A batch is a fixed set of tickets, decided before anything is sampled; it is released when all of
them are closed. So nothing is selected by which answer came first, and staleness is bounded by when
a batch may be opened.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from learner.problem_buffer import ProblemBuffer
from learner.repeats import judge_repeats
from learner.spec import SeedStage
from learner.ticket_check import TokenLimits, check_closed
from shared.config import RewardConfig, SelfPlayConfig
from shared.episodes import ClosedTicket, Episode, Task, Ticket, TicketId
from shared.errors import CheckpointError, MessageError


@dataclass(frozen=True, slots=True)
class Batch:
    """A released batch.

    tickets: closed, in order, repeats judged
    issued: the same tickets as they were issued, those that were issued again as they were then
    positions: where each was recorded when it was taken
    """

    number: int
    tickets: tuple[ClosedTicket, ...]
    issued: tuple[Ticket, ...]
    positions: tuple[int, ...] = ()

    @property
    def episodes(self) -> list[Episode]:
        """All episodes, ticket after ticket."""
        return [episode for ticket in self.tickets for episode in ticket.episodes]


@dataclass(slots=True)
class _Slot:
    """A ticket of an open batch, how often it was issued again, and what has come of it, recorded at `position`."""

    ticket: Ticket
    reissues: int = 0
    closed: ClosedTicket | None = None
    position: int | None = None


class _SavedSlot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    ticket: Ticket
    position: int | None


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """next_batch: the first that is not open yet; open: the slots of every open batch, in order"""

    next_batch: int
    open: dict[int, list[_SavedSlot]]


class Collector:
    """Owns the open batches and the problem buffer. Not thread-safe: the worker pool locks around it.

    stages: seed problems that enter the buffer when their batch is opened; those of batch 0 are there already
    lineage, first_batch: where the run stands when it is resumed
    """

    def __init__(
        self,
        buffer: ProblemBuffer,
        *,
        tasks: Sequence[Task],
        selfplay: SelfPlayConfig,
        rewards: RewardConfig,
        limits: TokenLimits,
        seed: int,
        stages: Sequence[SeedStage] = (),
        lineage: int = 0,
        first_batch: int = 0,
    ) -> None:
        self._buffer = buffer
        self._tasks = tuple(tasks)
        self._selfplay = selfplay
        self._rewards = rewards
        self._limits = limits
        self._seed = seed
        self._stages = {stage.batch: stage.problems for stage in stages if stage.batch > 0}
        self._lineage = lineage
        self._next_batch = first_batch
        self._released = first_batch
        self._open: dict[int, list[_Slot]] = {}
        self._closed: Counter[int] = Counter()  # tickets of each open batch
        self._handed_out = first_batch  # tickets of batches before it

    @property
    def lineage(self) -> int:
        """Of every ticket that is issued here."""
        return self._lineage

    @property
    def vocabulary(self) -> int:
        """Token ids are below it."""
        return self._limits.vocabulary

    def open(self, version: int, last_batch: int) -> None:
        """Open every batch that `version` may sample, up to `last_batch`."""
        while self._next_batch <= min(version + self._selfplay.max_staleness, last_batch):
            self._open[self._next_batch] = [_Slot(ticket) for ticket in self._issue(self._next_batch)]
            self._next_batch += 1

    def open_through(self, version: int, last_batch: int) -> list[Ticket]:
        """`open`, and hand out what is open, has not been handed out before, and is not closed; in order."""
        self.open(version, last_batch)
        batches = range(self._handed_out, self._next_batch)
        self._handed_out = self._next_batch
        return [slot.ticket for batch in batches for slot in self._open[batch] if slot.closed is None]

    def reissue(self, id: TicketId) -> Ticket:
        """An open ticket again, whole, with a seed that follows from how often that has been done."""
        slot = self._open[id.batch][id.index]
        if slot.closed is not None:
            raise RuntimeError(f"{id} is closed")
        slot.reissues += 1
        rng = random.Random(f"reissue {self._seed} {id.lineage} {id.batch} {id.index} {slot.reissues}")
        slot.ticket = replace(slot.ticket, seed=rng.getrandbits(63))
        return slot.ticket

    def issued(self, id: TicketId) -> Ticket:
        """A ticket of an open batch as it was last issued."""
        return self._open[id.batch][id.index].ticket

    def is_closed(self, id: TicketId) -> bool:
        """Whether this ticket of this lineage has been taken, or was part of a batch that has been released."""
        if id.lineage != self._lineage or id.batch < 0:
            return False
        slot = self._slot(id.batch, id.index)
        return id.batch < self._released or (slot is not None and slot.closed is not None)

    def check(self, closed: ClosedTicket) -> Ticket:
        """The ticket as it was issued, which `closed` fits. Raises MessageError when there is none, or it does not."""
        slot = self._slot(closed.id.batch, closed.id.index)
        if closed.id.lineage != self._lineage or slot is None:
            raise MessageError("a closed ticket that is not open here")
        check_closed(slot.ticket, closed, self._selfplay, self._limits)
        return slot.ticket

    def take(self, closed: ClosedTicket, position: int) -> None:
        """Take a closed ticket that has been checked, is not closed yet, and has been recorded at `position`."""
        self._fill(self._open[closed.id.batch][closed.id.index], closed, position)

    def close(self, closed: ClosedTicket) -> None:
        """Check and take a closed ticket without recording it. One that was taken before is dropped."""
        if not self.is_closed(closed.id):
            self.check(closed)
            self.take(closed, 0)

    def replay(self, closed: ClosedTicket, *, seed: int, position: int) -> None:
        """Take what was recorded at `position` before this lineage, for the same ticket issued with `seed`.

        Raises MessageError when that ticket is not open here, or it does not fit.
        """
        slot = self._slot(closed.id.batch, closed.id.index)
        if slot is None or slot.closed is not None:
            raise MessageError("a closed ticket that is not open here")
        ticket = replace(slot.ticket, seed=seed)
        closed = replace(closed, id=ticket.id)
        check_closed(ticket, closed, self._selfplay, self._limits)
        slot.ticket = ticket
        self._fill(slot, closed, position)

    def is_complete(self, number: int) -> bool:
        """Whether all tickets of an open batch are closed."""
        return self._closed[number] == len(self._open[number])

    @property
    def has_complete(self) -> bool:
        """Whether any open batch is complete."""
        return any(map(self.is_complete, self._open))

    def progress(self, number: int) -> tuple[int, int]:
        """(closed, issued) tickets of an open batch."""
        return self._closed[number], len(self._open[number])

    def release(self, number: int) -> Batch:
        """The batch, in ticket order, whatever the order of arrival: judge repeats, grow the buffer."""
        if not self.is_complete(number):
            raise RuntimeError(f"batch {number} is not complete")
        slots = self._open.pop(number)
        del self._closed[number]
        self._released = number + 1
        closed = [slot.closed for slot in slots if slot.closed is not None]
        tickets = judge_repeats(closed, self._selfplay, self._rewards)
        for ticket in tickets:
            if ticket.proposed is not None:
                self._buffer.add(ticket.proposed)
        positions = tuple(slot.position for slot in slots if slot.position is not None)
        return Batch(number, tickets, tuple(slot.ticket for slot in slots), positions)

    def state(self) -> dict[str, Any]:
        """The open batches, as plain data; of what is closed, where it was recorded."""
        open_batches = {
            number: [_SavedSlot(slot.ticket, slot.position) for slot in slots] for number, slots in self._open.items()
        }
        state: dict[str, Any] = msgspec.to_builtins(_State(self._next_batch, open_batches))
        return state

    def restore(self, state: object) -> list[int]:
        """Have the same batches open as where `state()` was taken, with the same tickets, in this lineage.

        Returns where what was closed then is recorded, to be replayed. Raises CheckpointError for a malformed `state`.
        """
        try:
            saved = msgspec.convert(state, _State, strict=False)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"the checkpoint's open tickets are malformed: {error}") from error
        if sorted(saved.open) != list(range(self._released, saved.next_batch)):
            raise CheckpointError(f"the checkpoint's open tickets are of batches {sorted(saved.open)}")
        self._next_batch = saved.next_batch
        for number, slots in sorted(saved.open.items()):
            ids = (TicketId(self._lineage, number, index) for index in range(len(slots)))
            self._open[number] = [_Slot(replace(slot.ticket, id=id)) for slot, id in zip(slots, ids, strict=True)]
        return [slot.position for slots in saved.open.values() for slot in slots if slot.position is not None]

    def _fill(self, slot: _Slot, closed: ClosedTicket, position: int) -> None:
        slot.closed, slot.position = closed, position
        self._closed[closed.id.batch] += 1

    def _slot(self, batch: int, index: int) -> _Slot | None:
        slots = self._open.get(batch, [])
        return slots[index] if 0 <= index < len(slots) else None

    def _issue(self, batch: int) -> tuple[Ticket, ...]:
        for problems in self._stages.get(batch, {}).values():
            for problem in problems:
                self._buffer.add(problem)
        # As in lineage 0, whichever this is: a run that goes on from a checkpoint is one that was never interrupted.
        rng = random.Random(f"tickets {self._seed} 0 {batch}")
        kinds = [
            *["proposal"] * self._selfplay.proposals_per_task,
            *["buffer"] * self._selfplay.buffer_problems_per_task,
        ]
        plan = [(task, kind) for kind in kinds for task in self._tasks]
        return tuple(self._ticket(TicketId(self._lineage, batch, i), *entry, rng) for i, entry in enumerate(plan))

    def _ticket(self, id: TicketId, task: Task, kind: str, rng: random.Random) -> Ticket:
        proposal = kind == "proposal"
        return Ticket(
            id=id,
            kind="proposal" if proposal else "buffer",
            task=task,
            references=tuple(self._buffer.sample(task, self._selfplay.references, rng)) if proposal else (),
            problem=self._buffer.sample(task, 1, rng)[0],
            min_version=max(0, id.batch - self._selfplay.max_staleness),
            seed=rng.getrandbits(63),
        )
