"""What the model is told in prime inversion: a line for the tiny model, full instructions for an Instruct model.

All numbers come from parsed integers. The last answer block of a prompt is its example of the format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from rollout.answers import answer_block
from rollout.prime_problems import Equations
from shared.config import EnvironmentConfig
from shared.episodes import Task

Bounds = tuple[int, int]

_SOLVER_EXAMPLE = answer_block("7")
_HIDDEN = {Task.DEDUCTION: "y", Task.ABDUCTION: "x", Task.INDUCTION: "p"}
# Beside the prime.
_GIVEN = {Task.DEDUCTION: "x", Task.ABDUCTION: "y"}


class Prompts(Protocol):
    """The user messages; bounds are the smallest and the largest prime allowed."""

    def proposer(self, task: Task, bounds: Bounds, references: Sequence[str], example: str) -> str:
        """`references` and `example` are written as a proposer states problems; `example` serves without references."""

    def solver(self, task: Task, equations: Equations, bounds: Bounds) -> str: ...


def make_prompts(config: EnvironmentConfig) -> Prompts:
    kinds: dict[str, Callable[..., Prompts]] = {"short": ShortPrompts, "instruct": InstructPrompts}
    full, swaps_count = config.proposal == "full", not config.swapped_is_copy
    return kinds[config.prompts](full=full, pairs=config.induction_pairs, swaps_count=swaps_count)


class ShortPrompts:
    """One line each; nothing is said about swapping."""

    def __init__(self, *, full: bool, pairs: int, swaps_count: bool) -> None:
        self._full, self._pairs = full, pairs

    def proposer(self, task: Task, bounds: Bounds, references: Sequence[str], example: str) -> str:
        """The first reference doubles as the example of the format."""
        known = references or [example]
        names = _names(task, full=self._full, pairs=self._pairs)
        prompt = "Pose a prime p from {} to {} ".format(*bounds)
        prompt += f"{self._wish(task)}. Give {names} like {answer_block(known[0])}"
        if not references:
            return prompt
        return f"{prompt} but new" + (f", not {'; '.join(known[1:])}" if known[1:] else "")

    def solver(self, task: Task, equations: Equations, bounds: Bounds) -> str:
        sought = _HIDDEN[task]
        if task is Task.INDUCTION:
            sought = f"a prime p above {'both' if self._pairs == 1 else 'all'} numbers"
        return f"Find {sought} with {_problem(task, equations)}. Reason, then answer like {_SOLVER_EXAMPLE}"

    def _wish(self, task: Task) -> str:
        if task is Task.INDUCTION:
            several = f"{self._pairs} pairs of " if self._pairs > 1 else ""
            return f"by {several}inverse x and y below it, to find p"
        hidden, shown = _HIDDEN[task], _GIVEN[task]
        if self._full:
            return f"and inverse x and y below it, to find {hidden}"
        return f"and {shown} below it, to find the inverse {hidden}"


class InstructPrompts:
    """Self-contained instructions: the role, the rules, the format, and last what differs between prompts.

    So prompts of one role and task begin alike, and both engine and learner compute their beginning once.
    """

    def __init__(self, *, full: bool, pairs: int, swaps_count: bool) -> None:
        self._full, self._pairs, self._swaps_count = full, pairs, swaps_count

    def proposer(self, task: Task, bounds: Bounds, references: Sequence[str], example: str) -> str:
        names = _names(task, full=self._full, pairs=self._pairs)
        rules = self._rules(task, bounds)
        known = "each of the known problems below" if references else "the example at the end"
        rules.append(f"It is new: different from {known}.")
        if not self._swaps_count:
            rules.append("Exchanging x and y does not make a problem new.")
        rules.append("It is neither trivial nor impossible: a good solver finds the answer sometimes, but not always.")
        return (
            "You set problems about inverses modulo a prime. "
            f"A solver will be shown {self._shown(task)} and must find {self._sought(task)}.\n\n"
            "Set one problem that keeps these rules:\n"
            + "".join(f"- {rule}\n" for rule in rules)
            + "\n"
            + _instructions("problem", f"the integers {names}, separated by commas")
            + (f"\n\nKnown problems, written as {names}: {'; '.join(references)}." if references else "")
            + "\n\n"
            + _format((references or [example])[0])
        )

    def solver(self, task: Task, equations: Equations, bounds: Bounds) -> str:
        hidden = _HIDDEN[task]
        product = "each x * y" if task is Task.INDUCTION and self._pairs > 1 else "x * y"
        return (
            f"You solve problems about inverses modulo a prime: given {self._shown(task)}, "
            f"find {self._sought(task, bounds)}. That is, dividing {product} by p leaves the remainder 1.\n\n"
            f"{_instructions('answer', f'the integer {hidden}')} {_format('7')}\n\n"
            f"Find {hidden} with {_problem(task, equations)}."
        )

    def _shown(self, task: Task) -> str:
        if task is not Task.INDUCTION:
            return f"the prime p and the integer {_GIVEN[task]}"
        return "two integers x and y" if self._pairs == 1 else f"{self._pairs} pairs of integers x, y"

    def _sought(self, task: Task, bounds: Bounds | None = None) -> str:
        """What is to be found; with the bounds, all that is to be known about it."""
        if task is not Task.INDUCTION:
            within = f"1 <= {_HIDDEN[task]} < p and " if bounds else ""
            return f"the integer {_HIDDEN[task]} with {within}x * y = 1 (mod p)"
        prime = "a prime number p from {} to {}".format(*bounds) if bounds else "a prime p"
        every = "" if self._pairs == 1 else " for every pair"
        return f"{prime}, larger than every number shown, with x * y = 1 (mod p){every}"

    def _rules(self, task: Task, bounds: Bounds) -> list[str]:
        prime = "p is a prime number from {} to {}.".format(*bounds)
        if task is not Task.INDUCTION:
            return [prime, "1 <= x, y < p and x * y = 1 (mod p)." if self._full else f"1 <= {_GIVEN[task]} < p."]
        if self._pairs == 1:
            return [prime, "1 <= x, y < p and x * y = 1 (mod p).", "The product x * y is not 1 itself."]
        each = f"1 <= x, y < p and x * y = 1 (mod p) for each of the {self._pairs} pairs x, y, with the same p."
        return [prime, each, "No two pairs are the same, and no product x * y is 1 itself."]


def _names(task: Task, *, full: bool, pairs: int) -> str:
    """What a proposer states, by name."""
    if task is not Task.INDUCTION:
        return "x, y, p" if full else "x, p" if task is Task.DEDUCTION else "y, p"
    names = "x, y" if pairs == 1 else ", ".join(f"x{i}, y{i}" for i in range(1, pairs + 1))
    return f"{names}, p" if full else names


def _problem(task: Task, equations: Equations) -> str:
    """What a solver is shown, with the name of what is hidden."""
    if task is Task.INDUCTION:
        return ", ".join(f"{x} * {y} = 1" for x, y in equations.pairs) + " (mod p)"
    number, p = equations.shown(task)
    return f"{number} * y = 1 (mod {p})" if task is Task.DEDUCTION else f"x * {number} = 1 (mod {p})"


def _instructions(what: str, content: str) -> str:
    return (
        f"Think step by step inside <think>...</think>, then give the {what} inside <answer>...</answer>, containing "
        f"only {content}. Write nothing after it."
    )


def _format(example: str) -> str:
    return f"The format is:\n<think>your reasoning</think>\n{answer_block(example)}"
