"""The collector: issues each batch's tickets, takes closed ones, releases batches whole and in order.

A batch is a fixed set of tickets, decided before anything is sampled; it is released when all of
them are closed. So nothing is selected by which answer came first, and staleness is bounded by when
a batch may be opened.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import msgspec

from learner.problem_buffer import ProblemBuffer
from learner.repeats import judge_repeats
from learner.spec import SeedStage
from learner.ticket_check import TokenLimits, check_closed
from shared.config import RewardConfig, SelfPlayConfig
from shared.episodes import ClosedTicket, Episode, Task, Ticket, TicketId
from shared.errors import MessageError


@dataclass(frozen=True, slots=True)
class Batch:
    """A released batch.

    tickets: closed, in order, repeats judged
    issued: the same tickets as they were issued, those that were issued again as they were then
    """

    number: int
    tickets: tuple[ClosedTicket, ...]
    issued: tuple[Ticket, ...]

    @property
    def episodes(self) -> list[Episode]:
        """All episodes, ticket after ticket."""
        return [episode for ticket in self.tickets for episode in ticket.episodes]


@dataclass(slots=True)
class _OpenBatch:
    tickets: list[Ticket]
    closed: dict[int, ClosedTicket] = field(default_factory=dict)
    reissues: Counter[int] = field(default_factory=Counter)


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
        self._take_back_seeds(stages, first_batch)
        self._lineage = lineage
        self._next_batch = first_batch
        self._released = first_batch
        self._open: dict[int, _OpenBatch] = {}

    def _take_back_seeds(self, stages: Sequence[SeedStage], first_batch: int) -> None:
        """Where a resumed run's buffer was already seeded for a batch that others are issued again before."""
        ahead = range(first_batch + 1, first_batch + self._selfplay.max_staleness + 1)
        if not any(stage.batch in ahead for stage in stages):
            return
        for stage in sorted(stages, key=lambda stage: -stage.batch):
            for problem in chain.from_iterable(stage.problems.values()):
                if stage.batch in ahead:
                    self._buffer.discard(problem)
                elif stage.batch <= first_batch:  # they may have left to make room
                    self._buffer.add(problem)

    @property
    def lineage(self) -> int:
        """Of every ticket that is issued here."""
        return self._lineage

    def open_through(self, version: int, last_batch: int) -> list[Ticket]:
        """Open every batch that `version` may sample, up to `last_batch`; the tickets, in order."""
        tickets: list[Ticket] = []
        while self._next_batch <= min(version + self._selfplay.max_staleness, last_batch):
            issued = self._issue(self._next_batch)
            self._open[self._next_batch] = _OpenBatch(list(issued))
            tickets += issued
            self._next_batch += 1
        return tickets

    def reissue(self, id: TicketId) -> Ticket:
        """An open ticket again, whole, with a seed that follows from how often that has been done."""
        batch = self._open[id.batch]
        if id.index in batch.closed:
            raise RuntimeError(f"{id} is closed")
        batch.reissues[id.index] += 1
        rng = random.Random(f"reissue {self._seed} {id.lineage} {id.batch} {id.index} {batch.reissues[id.index]}")
        batch.tickets[id.index] = msgspec.structs.replace(batch.tickets[id.index], seed=rng.getrandbits(63))
        return batch.tickets[id.index]

    def issued(self, id: TicketId) -> Ticket:
        """A ticket of an open batch as it was last issued."""
        return self._open[id.batch].tickets[id.index]

    def is_closed(self, id: TicketId) -> bool:
        """Whether this ticket of this lineage has been taken, or was part of a batch that has been released."""
        if id.lineage != self._lineage or id.batch < 0:
            return False
        batch = self._open.get(id.batch)
        return id.batch < self._released or (batch is not None and id.index in batch.closed)

    def close(self, closed: ClosedTicket) -> None:
        """Take a closed ticket. One that was taken before, and perhaps released, is dropped.

        Raises MessageError when it does not fit the ticket that was issued.
        """
        if self.is_closed(closed.id):
            return
        batch = self._open.get(closed.id.batch)
        if closed.id.lineage != self._lineage or batch is None or not 0 <= closed.id.index < len(batch.tickets):
            raise MessageError("a closed ticket that is not open here")
        check_closed(batch.tickets[closed.id.index], closed, self._selfplay, self._limits)
        batch.closed[closed.id.index] = closed

    def is_complete(self, number: int) -> bool:
        """Whether all tickets of an open batch are closed."""
        batch = self._open[number]
        return len(batch.closed) == len(batch.tickets)

    def progress(self, number: int) -> tuple[int, int]:
        """(closed, issued) tickets of an open batch."""
        batch = self._open[number]
        return len(batch.closed), len(batch.tickets)

    def release(self, number: int) -> Batch:
        """The batch, in ticket order, whatever the order of arrival: judge repeats, grow the buffer."""
        if not self.is_complete(number):
            raise RuntimeError(f"batch {number} is not complete")
        batch = self._open.pop(number)
        self._released = number + 1
        closed = [batch.closed[index] for index in range(len(batch.tickets))]
        tickets = judge_repeats(closed, self._selfplay, self._rewards)
        for ticket in tickets:
            if ticket.proposed is not None:
                self._buffer.add(ticket.proposed)
        return Batch(number, tickets, tuple(batch.tickets))

    def _issue(self, batch: int) -> tuple[Ticket, ...]:
        for problems in self._stages.get(batch, {}).values():
            for problem in problems:
                self._buffer.add(problem)
        rng = random.Random(f"tickets {self._seed} {self._lineage} {batch}")
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
