"""What self-play is made of: tasks, roles, problems, tickets, episodes. Plain data, no torch.

Structs rather than dataclasses: they are made by the thousand in each batch, in C. `gc=False` keeps them out of the
garbage collector's walks; nothing in them can point back at them.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


class Task(StrEnum):
    """Which part of a (program, input, output) triplet the solver has to find."""

    DEDUCTION = "deduction"
    ABDUCTION = "abduction"
    INDUCTION = "induction"


class Role(StrEnum):
    """Which of its two parts the one model plays."""

    PROPOSER = "proposer"
    SOLVER = "solver"


class Verdict(StrEnum):
    """How the environment judged one completion."""

    CORRECT = "correct"  # solver: an accepted answer
    WRONG = "wrong"  # solver: well formed, not accepted
    VALID = "valid"  # proposer: a new problem with at least one accepted answer
    INVALID = "invalid"  # proposer: well formed, but not a problem
    COPY = "copy"  # proposer: valid, but one of the references it was shown
    REPEAT = "repeat"  # proposer: valid, but proposed before in the same batch
    HELD_OUT = "held_out"  # proposer: refused only because it is kept for evaluation; not trained on
    UNPARSABLE = "unparsable"  # either: no answer in the asked format


class Problem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One problem, in the environment's own words; nobody else looks inside.

    content: everything the environment needs to prompt for it and to grade it
    key: the canonical form; two problems with equal task and key are the same problem
    family: problems of one task and family are made from each other for free, without solving anything
    answer: the hidden part, in its canonical form
    """

    task: Task
    content: str
    key: str
    family: str
    answer: str


class TicketId(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """Names a ticket for ever: lineage of the learner, batch, index within the batch."""

    lineage: int
    batch: int
    index: int


class Ticket(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A unit of work that is decided before anything is sampled.

    kind "proposal": one proposal made from `references`, then attempts on it if it is valid,
    otherwise attempts on `problem`. kind "buffer": attempts on `problem`.

    min_version: the oldest weight version that may sample for this ticket
    seed: 63-bit seed of every request made for it
    """

    id: TicketId
    kind: Literal["proposal", "buffer"]
    task: Task
    references: tuple[Problem, ...]
    problem: Problem
    min_version: int
    seed: int


class VersionSpan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Response tokens [start, end) were sampled by weight version `version`.

    mixed_kv: the attention cache of the span was partly computed by older weights
    """

    version: int
    start: int
    end: int
    mixed_kv: bool = False


class Episode(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One finished, judged completion.

    prompt_ids: int32 [prompt tokens]
    response_ids: int32 [response tokens], the sampled stop token included
    behaviour_logprobs: float32 [response tokens], the sampler's log-probability of each token under
        the distribution it was drawn from (after temperature)
    spans: weight versions of the response tokens, in order, covering all of them
    truncated: the completion was cut by the length limit
    """

    role: Role
    task: Task
    prompt_ids: Int32Array
    response_ids: Int32Array
    behaviour_logprobs: Float32Array
    spans: tuple[VersionSpan, ...]
    truncated: bool
    verdict: Verdict
    reward: float


class ClosedTicket(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Everything that one ticket produced: the unit that is streamed and acknowledged.

    proposal: the proposer's episode, for proposal tickets
    proposed: the problem it stated, if that is valid
    problem: the problem that the attempts are on
    attempts: the solver's episodes that train; all on `problem`, all with the same prompt
    solve_rate: mean of 1[correct] over all attempts at `problem`, those that do not train (solver_samples
        "separate") included
    untrained_episodes, untrained_tokens: those, and their response tokens
    """

    id: TicketId
    proposal: Episode | None
    proposed: Problem | None
    problem: Problem
    attempts: tuple[Episode, ...]
    solve_rate: float
    untrained_episodes: int = 0
    untrained_tokens: int = 0

    @property
    def newest_version(self) -> int:
        """The newest weight version that sampled any of it."""
        return max([span.version for episode in self.episodes for span in episode.spans])

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """The proposal, if any, then the attempts."""
        return self.attempts if self.proposal is None else (self.proposal, *self.attempts)


class TaskAccuracy(msgspec.Struct, frozen=True):
    """Greedy accuracy on one task type's evaluation problems.

    accuracy, unparsable: shares of `problems`; response_tokens: mean length of a completion
    """

    problems: int
    accuracy: float
    unparsable: float
    response_tokens: float


class Evaluation(msgspec.Struct, frozen=True):
    """A greedy evaluation of one weight version.

    tasks: on problems that may be trained on; held_out: on those that never are, empty where there are none
    """

    version: int
    tasks: dict[Task, TaskAccuracy]
    held_out: dict[Task, TaskAccuracy] = msgspec.field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """The unweighted mean of the tasks, on problems that may be trained on."""
        return _mean_accuracy(self.tasks.values())

    @property
    def held_out_accuracy(self) -> float | None:
        """The same on problems that never are; None where nothing is held out."""
        return _mean_accuracy(self.held_out.values()) if self.held_out else None


def _mean_accuracy(results: Collection[TaskAccuracy]) -> float:
    return sum(result.accuracy for result in results) / len(results)
