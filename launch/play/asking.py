"""What a person asks for: a problem by its numbers, or a proposal for a task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from rollout.answers import answer_block
from rollout.environment import Environment, make_environment
from shared.config import Config, EnvironmentConfig
from shared.episodes import Problem, Task
from shared.errors import ConfigError

_ASSIGNMENT = re.compile(r"([pxy])\s*=\s*([0-9]+(?:\s*,\s*[0-9]+)*)")
_NUMBERS = re.compile(r"[0-9]{1,9}(\s*,\s*[0-9]{1,9})*")
_TASKS: dict[tuple[str, ...], Task] = {
    ("p", "x"): Task.DEDUCTION,
    ("p", "y"): Task.ABDUCTION,
    ("x", "y"): Task.INDUCTION,
}


@dataclass(frozen=True, slots=True)
class Solve:
    """Solve x·y ≡ 1 (mod p) for what is not given. Each is one number; x and y, for induction, one of each pair.

    Raises ConfigError unless two of the three are given.
    """

    p: tuple[int, ...] = ()
    x: tuple[int, ...] = ()
    y: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.given) not in _TASKS:
            raise ConfigError("give two of p, x and y, such as p=101 x=7: the third is what is to be found")

    @property
    def task(self) -> Task:
        """By what is given."""
        return _TASKS[tuple(self.given)]

    @property
    def given(self) -> dict[str, tuple[int, ...]]:
        """What is given, by name."""
        return {name: numbers for name in ("p", "x", "y") if (numbers := getattr(self, name))}

    @property
    def stated(self) -> tuple[int, ...]:
        """The numbers as a proposer states them: x or y, then p; for induction pair by pair."""
        if self.task is Task.INDUCTION:
            return tuple(number for pair in zip(self.x, self.y, strict=True) for number in pair)
        return (*self.x, *self.y, *self.p)


@dataclass(frozen=True, slots=True)
class Propose:
    """Have a problem proposed, and attempt it."""

    task: Task


Request = Solve | Propose


@dataclass(frozen=True, slots=True)
class Posed:
    """A problem, and the environment that poses and grades it."""

    environment: Environment
    problem: Problem


def parse_line(line: str) -> Request:
    """From "p=101 x=7" or "propose induction"; ConfigError for anything else."""
    word, _, rest = line.strip().partition(" ")
    if word == "propose":
        return Propose(parse_task(rest.strip()))
    if _ASSIGNMENT.sub("", line).strip(" ,\t"):
        raise ConfigError(
            f"{line.strip()!r} is not understood: write two of p, x and y as in p=101 x=7, or propose TASK"
        )
    given = _ASSIGNMENT.findall(line)
    if len({name for name, _ in given}) < len(given):
        raise ConfigError("give each of p, x and y once; the numbers of several pairs with commas: x=3,5 y=4,6")
    return Solve(**{name: parse_numbers(name, numbers) for name, numbers in given})


def parse_numbers(name: str, text: str) -> tuple[int, ...]:
    """From "7" or "3,5"; ConfigError when it is anything else."""
    if not _NUMBERS.fullmatch(text.strip()):
        raise ConfigError(f"{name} is a positive number of at most nine digits, or several with commas, not {text!r}")
    return tuple(int(number) for number in text.split(","))


def parse_task(text: str) -> Task:
    """ConfigError when there is no such task."""
    try:
        return Task(text)
    except ValueError:
        raise ConfigError(f"there is no task {text!r}: it is one of {', '.join(Task)}") from None


def pose(config: Config, request: Solve) -> Posed:
    """The problem that the numbers state. The range of primes is widened to p; nothing is kept for evaluation.

    Raises ConfigError when there is no such problem.
    """
    task, pairs = request.task, config.environment.induction_pairs
    if task is Task.INDUCTION and not len(request.x) == len(request.y) == pairs:
        raise ConfigError(f"induction takes {pairs} of x and as many of y (environment.induction_pairs)")
    if task is not Task.INDUCTION and any(len(numbers) > 1 for numbers in request.given.values()):
        raise ConfigError(f"{task} takes one number of each")
    environment = _environment(config.environment, task, request.p)
    stated = ", ".join(map(str, request.stated))
    problem = environment.judge_proposal(task, answer_block(stated), batch=0).problem
    if problem is None:
        given = " ".join(f"{name}={','.join(map(str, numbers))}" for name, numbers in request.given.items())
        raise ConfigError(f"there is no {task} problem with {given}: {_why_not(task, config.environment)}")
    return Posed(environment, problem)


def check_proposal(config: Config, request: Propose) -> None:
    """ConfigError when nothing says what a problem of this task may be."""
    if request.task not in config.environment.tasks:
        raise ConfigError(
            f"there are no {request.task} problems here: environment.tasks is {', '.join(config.environment.tasks)}; "
            f"""--environment.tasks '["{request.task}"]' asks for one nonetheless"""
        )


def _environment(config: EnvironmentConfig, task: Task, primes: Sequence[int]) -> Environment:
    changes = {
        "tasks": [task],
        "min_prime": max(2, min([config.min_prime, *primes])),
        "max_prime": max([config.max_prime, *primes]),
        "curriculum": (),
        "held_out": 0.0,
        "proposal": "partial",
    }
    try:
        return make_environment(EnvironmentConfig.model_validate(config.model_dump() | changes))
    except ValidationError as error:
        raise ConfigError("p: " + "; ".join(each["msg"] for each in error.errors())) from error


def _why_not(task: Task, config: EnvironmentConfig) -> str:
    if task is Task.INDUCTION:
        return (
            f"no prime from {config.min_prime} to {config.max_prime} that is larger than each number has x * y = 1 "
            "(mod p), or every prime has; --environment.max_prime widens the range"
        )
    return f"p has to be a prime, and {'x' if task is Task.DEDUCTION else 'y'} from 1 to p - 1"
