"""The episodes of a run's journal, as they were trained on, with the reason for each reward."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from learner.journal import JOURNAL, Began, Dropped, Released, Took, records
from learner.repeats import judge_repeats
from shared.config import Config, RewardConfig
from shared.episodes import ClosedTicket, Episode, Role, Task, TicketId, Verdict
from shared.errors import JournalError

_ANY_VOCABULARY = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class RecordedEpisode:
    """One completion on record.

    step: the training step that its batch is (the batch's number + 1); attempt: from 0, None for a proposal
    fate: "trained", "dropped: <reason>", or "open" where its batch is not trained on
    problem: in the environment's words; accepted: the answer on record, others may be accepted too
    solve_rate: of the attempts at `problem`
    """

    step: int
    ticket: TicketId
    attempt: int | None
    fate: str
    episode: Episode
    problem: str
    accepted: str
    solve_rate: float
    reason: str

    @property
    def role(self) -> Role:
        return self.episode.role

    @property
    def task(self) -> Task:
        return self.episode.task

    @property
    def name(self) -> str:
        """Names the episode in its run: step, ticket, and which of the ticket's completions it is."""
        which = "proposal" if self.attempt is None else f"attempt {self.attempt + 1}"
        return f"step {self.step}, ticket {self.ticket.index}, {which}"


class RecordedRun:
    """An index of a run's journal along its surviving lineage; episodes are read when they are asked for.

    damaged: whether not one record of it can be read

    Raises JournalError when there is no journal, or it cannot be read.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self._journal = folder / JOURNAL
        if not self._journal.is_file():
            raise JournalError(
                f"the run in {folder} has no journal: it never came to its first episodes, or the file was removed"
            )
        self._config = config
        self._batches: dict[int, tuple[int, ...]] = {}
        self._dropped: dict[int, str] = {}
        self._taken: dict[int, int] = {}
        self.damaged = self._journal.stat().st_size > 0
        for position, record in records(self._journal):
            self.damaged = False
            match record:
                case Took():
                    self._taken[position] = record.id.batch
                case Dropped():
                    self._dropped[record.position] = record.reason
                case Released():
                    self._batches[record.batch] = record.positions
                case Began():
                    self._batches = {b: positions for b, positions in self._batches.items() if b < record.version}

    @property
    def steps(self) -> list[int]:
        """Steps that were trained, ascending."""
        return [batch + 1 for batch in sorted(self._batches)]

    @property
    def untrained(self) -> list[int]:
        """Steps with closed tickets that were not trained on, ascending."""
        return sorted({batch + 1 for batch in self._untrained})

    def trained(self, step: int) -> list[RecordedEpisode]:
        """The episodes of a trained step in ticket order, their repeats judged as they were for training."""
        tickets = [self._ticket(position) for position in self._batches.get(step - 1, ())]
        judged = judge_repeats(tickets, self._config.selfplay, self._config.rewards)
        return [episode for ticket in judged for episode in self._episodes(step, ticket, "trained")]

    def not_trained(self, step: int) -> list[RecordedEpisode]:
        """The episodes of a step's other tickets: dropped, or of a batch that is still open."""
        return [
            episode
            for position in self._untrained.get(step - 1, ())
            for episode in self._episodes(step, self._ticket(position), self._fate(position))
        ]

    def all(self, steps: Collection[int] | None = None, *, untrained: bool = False) -> Iterator[RecordedEpisode]:
        """Those of `steps`, ascending, or of all; those that were not trained on only where they are asked for."""
        of_run = sorted({*self.steps, *(self.untrained if untrained else ())})
        for step in of_run:
            if steps is None or step in steps:
                yield from self.trained(step)
                if untrained:
                    yield from self.not_trained(step)

    @cached_property
    def _untrained(self) -> dict[int, list[int]]:
        """Batch → positions of its closed tickets that were not trained on."""
        trained = {position for positions in self._batches.values() for position in positions}
        batches: dict[int, list[int]] = {}
        for position, batch in self._taken.items():
            if position not in trained:
                batches.setdefault(batch, []).append(position)
        return batches

    def _fate(self, position: int) -> str:
        return f"dropped: {self._dropped[position]}" if position in self._dropped else "open"

    def _ticket(self, position: int) -> ClosedTicket:
        record = next((record for _, record in records(self._journal, position)), None)
        if not isinstance(record, Took):
            raise JournalError(f"{self._journal} is not whole: it has no closed ticket at {position}")
        return record.closed(_ANY_VOCABULARY)

    def _episodes(self, step: int, ticket: ClosedTicket, fate: str) -> Iterator[RecordedEpisode]:
        proposals = 0 if ticket.proposal is None else 1
        for index, episode in enumerate(ticket.episodes):
            yield RecordedEpisode(
                step=step,
                ticket=ticket.id,
                attempt=None if index < proposals else index - proposals,
                fate=fate,
                episode=episode,
                problem=ticket.problem.content,
                accepted=ticket.problem.answer,
                solve_rate=ticket.solve_rate,
                reason=reward_reason(episode, ticket.solve_rate, ticket.problem.answer, self._config.rewards),
            )


def reward_reason(episode: Episode, solve_rate: float, accepted: str, rewards: RewardConfig) -> str:
    """Why an episode earned what it did, in words."""
    reason = _solver(episode, accepted) if episode.role is Role.SOLVER else _proposer(episode, solve_rate)
    if episode.truncated:
        reason += "; cut by the length limit"
    if rewards.length_penalty and episode.verdict is not Verdict.HELD_OUT:
        reason += f"; less {rewards.length_penalty:g} for each of {len(episode.response_ids)} tokens"
    return reason


def _solver(episode: Episode, accepted: str) -> str:
    match episode.verdict:
        case Verdict.CORRECT:
            return "an accepted answer"
        case Verdict.WRONG:
            return f"well formed, but not accepted; {accepted} would have been"
    return f"no answer in the asked format; {accepted} would have been accepted"


def _proposer(episode: Episode, solve_rate: float) -> str:
    match episode.verdict:
        case Verdict.VALID if solve_rate in (0, 1):
            return f"valid, but {'always' if solve_rate else 'never'} solved: nothing to learn"
        case Verdict.VALID:
            return f"valid, with a solve rate of {solve_rate:.3g}: learnability 1 − {solve_rate:.3g}"
        case Verdict.INVALID:
            return "well formed, but no problem that the environment accepts"
        case Verdict.COPY:
            return "a copy of a problem that it was shown"
        case Verdict.REPEAT:
            return "proposed before in the same batch"
        case Verdict.HELD_OUT:
            return "kept for evaluation: not trained on"
    return "no problem in the asked format"
