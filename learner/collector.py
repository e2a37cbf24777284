"""The collector: issues each batch's tickets, takes closed ones, releases batches whole and in order.

A batch is a fixed set of tickets, decided before anything is sampled; it is released when all of
them are closed. So nothing is selected by which answer came first, and staleness is bounded by when
a batch may be opened.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from learner.problem_buffer import ProblemBuffer
from shared.config import RewardConfig, SelfPlayConfig
from shared.episodes import ClosedTicket, Episode, Role, Task, Ticket, TicketId, Verdict
from shared.errors import MessageError
from shared.rewards import proposer_reward

MAX_PROBLEM_CHARACTERS = 65_536
MAX_REWARD = 1e6
VERDICTS = {
    Role.PROPOSER: {Verdict.VALID, Verdict.INVALID, Verdict.COPY, Verdict.UNPARSABLE},
    Role.SOLVER: {Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE},
}


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What no honest episode exceeds: tokens in prompt and response, and ids below `vocabulary`."""

    prompt: int
    response: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A released batch: its tickets in order, repeats judged."""

    number: int
    tickets: tuple[ClosedTicket, ...]

    @property
    def episodes(self) -> list[Episode]:
        """All episodes, ticket after ticket."""
        return [episode for ticket in self.tickets for episode in ticket.episodes]


@dataclass(slots=True)
class _OpenBatch:
    tickets: tuple[Ticket, ...]
    closed: dict[int, ClosedTicket] = field(default_factory=dict)


class Collector:
    """Owns the open batches and the problem buffer. Not thread-safe: the worker pool locks around it."""

    def __init__(
        self,
        buffer: ProblemBuffer,
        *,
        tasks: Sequence[Task],
        selfplay: SelfPlayConfig,
        rewards: RewardConfig,
        limits: TokenLimits,
        seed: int,
        lineage: int = 0,
    ) -> None:
        self._buffer = buffer
        self._tasks = tuple(tasks)
        self._selfplay = selfplay
        self._rewards = rewards
        self._limits = limits
        self._seed = seed
        self._lineage = lineage
        self._next_batch = 0
        self._released = 0
        self._open: dict[int, _OpenBatch] = {}

    def open_through(self, version: int, last_batch: int) -> list[Ticket]:
        """Open every batch that `version` may sample, up to `last_batch`; the tickets, in order."""
        tickets: list[Ticket] = []
        while self._next_batch <= min(version + self._selfplay.max_staleness, last_batch):
            issued = self._issue(self._next_batch)
            self._open[self._next_batch] = _OpenBatch(issued)
            tickets += issued
            self._next_batch += 1
        return tickets

    def close(self, closed: ClosedTicket) -> None:
        """Take a closed ticket. One that was taken before, and perhaps released, is dropped.

        Raises MessageError when it does not fit the ticket that was issued.
        """
        if closed.id.lineage == self._lineage and 0 <= closed.id.batch < self._released:
            return
        batch = self._open.get(closed.id.batch)
        if closed.id.lineage != self._lineage or batch is None or not 0 <= closed.id.index < len(batch.tickets):
            raise MessageError("a closed ticket that is not open here")
        self._check(batch.tickets[closed.id.index], closed)
        batch.closed.setdefault(closed.id.index, closed)

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
        tickets = [batch.closed[index] for index in range(len(batch.tickets))]
        if self._selfplay.repeat_in_batch == "invalid":
            tickets = self._judge_repeats(tickets)
        for ticket in tickets:
            if ticket.proposed is not None:
                self._buffer.add(ticket.proposed)
        return Batch(number, tuple(tickets))

    def _issue(self, batch: int) -> tuple[Ticket, ...]:
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

    def _check(self, ticket: Ticket, closed: ClosedTicket) -> None:
        valid = closed.proposal is not None and closed.proposal.verdict is Verdict.VALID
        if (closed.proposal is not None) != (ticket.kind == "proposal") or valid != (closed.proposed is not None):
            raise MessageError("a closed ticket with the wrong proposal")
        if closed.problem != (closed.proposed or ticket.problem):
            raise MessageError("a closed ticket on another problem than its own")
        if len(closed.attempts) != self._selfplay.attempts:
            raise MessageError(f"a closed ticket with {len(closed.attempts)} attempts")
        if closed.proposal is not None and closed.proposal.role is not Role.PROPOSER:
            raise MessageError("a closed ticket with its roles mixed up")
        if any(attempt.role is not Role.SOLVER for attempt in closed.attempts):
            raise MessageError("a closed ticket with its roles mixed up")
        if closed.problem.task is not ticket.task or any(e.task is not ticket.task for e in closed.episodes):
            raise MessageError("a closed ticket of another task")
        if max(len(closed.problem.content), len(closed.problem.key)) > MAX_PROBLEM_CHARACTERS:
            raise MessageError("a closed ticket with an endless problem")
        for episode in closed.episodes:
            self._check_episode(episode)
            for span in episode.spans:
                if not ticket.min_version <= span.version <= closed.id.batch:
                    raise MessageError(f"a token of version {span.version} in a ticket of batch {closed.id.batch}")

    def _check_episode(self, episode: Episode) -> None:
        if episode.verdict not in VERDICTS[episode.role]:
            raise MessageError(f"a {episode.role} that is judged {episode.verdict}")
        if abs(episode.reward) > MAX_REWARD:
            raise MessageError("an episode with an impossible reward")
        if len(episode.prompt_ids) > self._limits.prompt or len(episode.response_ids) > self._limits.response:
            raise MessageError("an episode longer than sampling allows")
        if max(int(episode.prompt_ids.max()), int(episode.response_ids.max())) >= self._limits.vocabulary:
            raise MessageError("a token id outside the vocabulary")

    def _judge_repeats(self, tickets: list[ClosedTicket]) -> list[ClosedTicket]:
        seen: set[tuple[Task, str]] = set()
        judged = []
        for ticket in tickets:
            if ticket.proposal is not None and ticket.proposed is not None:
                name = (ticket.proposed.task, ticket.proposed.key)
                if name in seen:
                    reward = proposer_reward(Verdict.REPEAT, None, len(ticket.proposal.response_ids), self._rewards)
                    repeat = replace(ticket.proposal, verdict=Verdict.REPEAT, reward=reward)
                    ticket = replace(ticket, proposal=repeat)
                seen.add(name)
            judged.append(ticket)
        return judged
