"""What `primezero eval` found, as plain numbers.

These classes are the schema of its JSON, field for field; a field of `Report` is a key of the outermost object. Shares
and accuracies lie in [0, 1], lengths are tokens, k of pass@k is a string key there.

Intervals are at 95% and regard the problems as a random sample: where a set holds all problems that there are, its
accuracy is exact, and the interval speaks of other problems like these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval [low, high]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one set of problems.

    accuracy, unparsable, truncated, response_tokens: of greedy decoding; accuracy with Wilson's interval, truncated:
        cut by the length limit, response_tokens: mean length
    pass_at: k → pass@k of the samples, mean of the problems; empty where none were asked for
    """

    accuracy: Estimate
    unparsable: float
    truncated: float
    response_tokens: float
    pass_at: dict[int, float]


@dataclass(frozen=True, slots=True)
class Row:
    """All that is known about one set of problems.

    baselines: trick → its accuracy, for answers that need no skill
    difference: accuracy of the model less that of the baseline model, paired by problem (Bonett and Price 2012)
    """

    problems: int
    baselines: dict[str, float]
    model: Result
    baseline_model: Result | None
    difference: Estimate | None


@dataclass(frozen=True, slots=True)
class Group:
    """A row for each task that occurs, and their mean.

    mean: each number is the unweighted mean of the tasks', `problems` their sum; its intervals come from the tasks'
        (`shared.statistics.mean_interval`), and its baselines are those that every task has
    """

    tasks: dict[str, Row]
    mean: Row


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """A set of problems, and the parts of it that the environment wants to see apart, by name."""

    all: Group
    slices: dict[str, Group]


@dataclass(frozen=True, slots=True)
class BandReport:
    """The problems of the primes in [min_prime, max_prime].

    held_out: those that are never trained on; none where nothing is held out
    """

    min_prime: int
    max_prime: int
    trainable: ProblemSet
    held_out: ProblemSet | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One call of `primezero eval`.

    problems_per_task: at most, in each set; samples: on each problem for pass@k, at `temperature`; 0: none
    """

    model: str
    baseline_model: str | None
    dtype: str
    max_response_tokens: int
    problems_per_task: int
    samples: int
    temperature: float | None
    bands: list[BandReport]
