"""The environment: what the problems are, how they are asked for, and how answers are judged.

The rest of the system sees problems only through this protocol.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.config import EnvironmentConfig
from shared.episodes import Problem, Role, Task, Verdict


@dataclass(frozen=True, slots=True)
class Proposal:
    """A judged proposal.

    verdict: VALID, INVALID, HELD_OUT or UNPARSABLE; copies and repeats are for the caller to find, by key
    problem: the proposed problem, only when VALID
    """

    verdict: Verdict
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A user message and a well-formed response to it; the response is not always right."""

    prompt: str
    response: str


class Environment(Protocol):
    """One family of problems (Absolute Zero, arXiv 2505.03335, section 3).

    A Problem that comes from elsewhere (the wire, a checkpoint) is checked where it is used: every
    method that takes one raises ValueError when it is malformed or impossible under these settings.
    Model text never makes a method raise.

    A share of the problems may be held out: they are never proposed, shown, demonstrated or seeded, and only
    `evaluation_problems` gives them out.

    tasks: the task types that have problems
    fingerprint: names the environment and its settings; worker and learner compare it at hello
    stages: the batches from which on a wider range of problems is open (a curriculum), ascending, the first 0
    """

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def stages(self) -> tuple[int, ...]: ...

    def proposer_prompt(self, task: Task, references: Sequence[Problem], *, batch: int) -> str:
        """The user message asking for a new problem; `references`, of the same task, may be empty."""

    def solver_prompt(self, problem: Problem) -> str:
        """The user message asking for the hidden part."""

    def judge_proposal(self, task: Task, text: str, *, batch: int) -> Proposal:
        """What the proposer's response `text` amounts to in a ticket of `batch`."""

    def grade(self, problem: Problem, text: str) -> Verdict:
        """CORRECT, WRONG or UNPARSABLE for the solver's response `text`."""

    def seed_problems(self, task: Task, count: int, rng: random.Random, *, batch: int) -> list[Problem]:
        """Distinct random valid problems open in `batch`: `count`, or as many as exist."""

    def evaluation_problems(self, task: Task, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """The fixed evaluation set of `seed`, over the whole range: `count` distinct problems, or all there are.

        Of the problems that may be trained on, or, with `held_out`, of those that never are: none where nothing is.
        """

    def slices(self, problem: Problem) -> tuple[str, ...]:
        """Names of the kinds that an evaluation reports `problem` under, beside its task; often none."""

    def baselines(self, problems: Sequence[Problem]) -> dict[str, float]:
        """By the name of the trick, the accuracy on `problems`, of one task, of answers that need no skill."""

    def demonstration(self, role: Role, task: Task, rng: random.Random) -> Demonstration:
        """One row for a format warm start."""


def make_environment(config: EnvironmentConfig) -> Environment:
    """The environment that `config` names; ConfigError when some task would have no problem."""
    # Imported here because environments import the types above.
    from rollout.prime_inversion import PrimeInversion

    environments = {"prime_inversion": PrimeInversion}
    return environments[config.name](config)
