"""Prime inversion: x·y ≡ 1 (mod p), p prime, with one part hidden from the solver.

The modulus plays Absolute Zero's program, x its input, y its output (arXiv 2505.03335, section 3.2).
A proposer states the two parts that the solver will be shown:

    task        shown   hidden   accepted answers
    deduction   x, p    y        every integer ≡ y (mod p)
    abduction   y, p    x        every integer ≡ x (mod p)
    induction   x, y    p        every prime of the range, above x and y, with x·y ≡ 1 (mod p)

A problem is the ordered pair shown, so (x, y) and (y, x) are two induction problems; its content and its
key are both the two numbers in decimal, "12,13". x·y = 1 is no induction problem: every prime would do.
Elsewhere the induction answer is unique: two primes above max(x, y) cannot both divide x·y − 1, which
is below max(x, y)². So each prime p contributes p − 1 deduction, p − 1 abduction and p − 2 induction
problems.
"""

from __future__ import annotations

import hashlib
import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from rollout.environment import Demonstration, Proposal
from shared.config import EnvironmentConfig
from shared.episodes import Problem, Role, Task, Verdict
from shared.errors import ConfigError

_SOLVER_PROMPTS = {
    Task.DEDUCTION: "Find y with {} * y = 1 (mod {}). Reason, then answer like {}",
    Task.ABDUCTION: "Find x with x * {} = 1 (mod {}). Reason, then answer like {}",
    Task.INDUCTION: "Find a prime p above both numbers with {} * {} = 1 (mod p). Reason, then answer like {}",
}
_PROPOSER_PROMPTS = {
    Task.DEDUCTION: "Pose a prime p from {} to {} and x below it, to find the inverse y. Give x, p like {}",
    Task.ABDUCTION: "Pose a prime p from {} to {} and y below it, to find the inverse x. Give y, p like {}",
    Task.INDUCTION: "Pose a prime p from {} to {} by inverse x and y below it, to find p. Give x, y like {}",
}
_SOLVER_EXAMPLE = 7
_TAG = re.compile(r"(</?answer>)")
_INTEGER = re.compile(r"-?[0-9]{1,12}")
_CONTENT = re.compile(r"([1-9][0-9]{0,5}),([1-9][0-9]{0,5})")
_WHITESPACE = " \t\r\n\f\v"
# Demonstrations are right up to this prime and guess above it.
_DEMONSTRATED_PRIME = 5
_DEMONSTRATED_REFERENCES = 3


class PrimeInversion:
    """The prime-inversion environment over the primes in [min_prime, max_prime]; see Environment."""

    tasks = (Task.DEDUCTION, Task.ABDUCTION, Task.INDUCTION)

    def __init__(self, config: EnvironmentConfig) -> None:
        self._range = (config.min_prime, config.max_prime)
        self._answer_must_end = config.text_after_answer == "unparsable"
        self._primes = _primes(*self._range)
        self._prime_set = frozenset(self._primes)
        # Smallest hidden-side x of a prime's problems, and the number of problems up to each prime.
        self._first_x = {task: 2 if task is Task.INDUCTION else 1 for task in self.tasks}
        self._totals = {task: list(accumulate(p - x for p in self._primes)) for task, x in self._first_x.items()}
        for task, totals in self._totals.items():
            if not totals or totals[-1] == 0:
                raise ConfigError(f"environment: no {task} problem exists for primes in {list(self._range)}")
        rules = repr((_SOLVER_PROMPTS, _PROPOSER_PROMPTS, self._answer_must_end)).encode()
        self.fingerprint = (
            "prime_inversion partial {}..{} ".format(*self._range) + hashlib.sha256(rules).hexdigest()[:8]
        )

    def proposer_prompt(self, task: Task, references: Sequence[Problem]) -> str:
        """The first reference doubles as the example of the format; without one, the smallest problem does."""
        if any(reference.task is not task for reference in references):
            raise ValueError(f"the references of a {task} proposal are not all {task} problems")
        known = [self._stated(reference) for reference in references]
        example = known[0] if known else self._stated(self._problem_at(task, 0))
        prompt = _PROPOSER_PROMPTS[task].format(*self._range, _block(example))
        if not known:
            return prompt
        return f"{prompt} but new" + (f", not {'; '.join(known[1:])}" if known[1:] else "")

    def solver_prompt(self, problem: Problem) -> str:
        return _SOLVER_PROMPTS[problem.task].format(*self._shown(problem), _block(str(_SOLVER_EXAMPLE)))

    def judge_proposal(self, task: Task, text: str) -> Proposal:
        numbers = self._parse(text, 2)
        if numbers is None:
            return Proposal(Verdict.UNPARSABLE)
        first, second = numbers
        if not self._is_valid(task, first, second):
            return Proposal(Verdict.INVALID)
        return Proposal(Verdict.VALID, _problem(task, first, second))

    def grade(self, problem: Problem, text: str) -> Verdict:
        first, second = self._shown(problem)
        numbers = self._parse(text, 1)
        if numbers is None:
            return Verdict.UNPARSABLE
        (answer,) = numbers
        if problem.task is Task.INDUCTION:
            correct = answer in self._prime_set and answer > max(first, second) and first * second % answer == 1
        else:
            correct = first * answer % second == 1
        return Verdict.CORRECT if correct else Verdict.WRONG

    def seed_problems(self, task: Task, count: int, rng: random.Random) -> list[Problem]:
        total = self._totals[task][-1]
        return [self._problem_at(task, index) for index in rng.sample(range(total), min(count, total))]

    def evaluation_problems(self, task: Task, count: int, seed: int) -> list[Problem]:
        """One random problem from each of `count` equal slices of all, ordered by p: every band is covered."""
        total = self._totals[task][-1]
        count = min(count, total)
        rng = random.Random(f"evaluation {seed} {task}")
        bounds = [total * index // count for index in range(count + 1)]
        return [self._problem_at(task, rng.randrange(*bounds[index : index + 2])) for index in range(count)]

    def demonstration(self, role: Role, task: Task, rng: random.Random) -> Demonstration:
        """Proposer: a random new problem. Solver: right for p up to 5, a guess of the right kind above."""
        if role is Role.PROPOSER:
            *references, new = self.seed_problems(task, _DEMONSTRATED_REFERENCES + 1, rng)
            return Demonstration(self.proposer_prompt(task, references), _block(self._stated(new)))
        (problem,) = self.seed_problems(task, 1, rng)
        return Demonstration(self.solver_prompt(problem), _block(str(self._demonstrated_answer(problem, rng))))

    def _demonstrated_answer(self, problem: Problem, rng: random.Random) -> int:
        first, second = self._shown(problem)
        if problem.task is Task.INDUCTION:
            candidates = self._primes_above(first, second)
            answer = next(p for p in candidates if first * second % p == 1)
            return answer if answer <= _DEMONSTRATED_PRIME else rng.choice(candidates)
        return pow(first, -1, second) if second <= _DEMONSTRATED_PRIME else rng.randrange(1, second)

    def _parse(self, text: str, count: int) -> tuple[int, ...] | None:
        return parse_answer(text, count, must_end_there=self._answer_must_end)

    def _stated(self, problem: Problem) -> str:
        """The problem as a proposer states it."""
        return "{}, {}".format(*self._shown(problem))

    def _shown(self, problem: Problem) -> tuple[int, int]:
        """The two numbers shown; ValueError unless `problem` is one of this environment's."""
        match = _CONTENT.fullmatch(problem.content)
        if match is None or problem.key != problem.content:
            raise ValueError(f"malformed {problem.task} problem: {problem.content[:40]!r}, key {problem.key[:40]!r}")
        first, second = int(match[1]), int(match[2])
        if not self._is_valid(problem.task, first, second):
            raise ValueError(f"no {problem.task} problem for primes in {list(self._range)}: {problem.content!r}")
        return first, second

    def _is_valid(self, task: Task, first: int, second: int) -> bool:
        if task is not Task.INDUCTION:
            return second in self._prime_set and 1 <= first < second
        if min(first, second) < 1 or max(first, second) >= self._primes[-1] or first * second == 1:
            return False
        return any(first * second % p == 1 for p in self._primes_above(first, second))

    def _primes_above(self, first: int, second: int) -> list[int]:
        return self._primes[bisect_right(self._primes, max(first, second)) :]

    def _problem_at(self, task: Task, index: int) -> Problem:
        """Problem `index` of all of this task, ordered by p, then by x."""
        totals = self._totals[task]
        place = bisect_right(totals, index)
        p = self._primes[place]
        x = self._first_x[task] + index - (totals[place - 1] if place else 0)
        return _problem(task, x, pow(x, -1, p) if task is Task.INDUCTION else p)


def parse_answer(text: str, count: int, *, must_end_there: bool) -> tuple[int, ...] | None:
    """The `count` integers of the last complete answer block in `text`; None if it holds anything else.

    A block is `<answer>…</answer>` without another answer tag inside. Its stripped content must be
    comma-separated ASCII integers of at most 12 digits. must_end_there: only white space may follow it.
    """
    parts = _TAG.split(text)
    for end in range(len(parts) - 2, 2, -2):
        if parts[end] == "</answer>" and parts[end - 2] == "<answer>":
            if must_end_there and "".join(parts[end + 1 :]).strip(_WHITESPACE):
                return None
            words = [word.strip(_WHITESPACE) for word in parts[end - 1].split(",", count)]
            if len(words) == count and all(map(_INTEGER.fullmatch, words)):
                return tuple(map(int, words))
            return None
    return None


def _block(content: str) -> str:
    return f"<answer>{content}</answer>"


def _problem(task: Task, first: int, second: int) -> Problem:
    text = f"{first},{second}"
    return Problem(task, text, text)


def _primes(low: int, high: int) -> list[int]:
    """The primes in [low, high], by the sieve of Eratosthenes."""
    sieve = bytearray([1]) * (high + 1)
    for n in range(2, int(high**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, high + 1, n)))
    return [n for n in range(max(low, 2), high + 1) if sieve[n]]
