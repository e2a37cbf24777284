"""Prime inversion by brute force, and short ways to speak to the environment."""

from __future__ import annotations

from itertools import combinations, product

from rollout.environment import Environment
from rollout.prime_inversion import PrimeInversion
from shared.config import EnvironmentConfig
from shared.episodes import Problem, Task, Verdict

PRIMES_TO_101 = [n for n in range(2, 102) if all(n % d for d in range(2, n))]


def make_prime(low: int = 2, high: int = 13, **settings: object) -> PrimeInversion:
    return PrimeInversion(EnvironmentConfig(min_prime=low, max_prime=high, **{"prompts": "short"} | settings))


def answer(*numbers: int) -> str:
    return f"<answer>{', '.join(map(str, numbers))}</answer>"


def numbers_of(problem: Problem) -> tuple[int, ...]:
    return tuple(map(int, problem.content.split(",")))


def everything(env: Environment, task: Task, *, held_out: bool = False) -> list[Problem]:
    return env.evaluation_problems(task, 10**6, seed=0, held_out=held_out)


def judged(env: Environment, task: Task, *numbers: int, batch: int = 0) -> Verdict:
    return env.judge_proposal(task, answer(*numbers), batch=batch).verdict


def triples(low: int, high: int) -> list[tuple[int, int, int]]:
    """All (x, y, p) with x·y ≡ 1 (mod p)."""
    primes = [p for p in PRIMES_TO_101 if low <= p <= high]
    return [(x, y, p) for p in primes for x, y in product(range(1, p), repeat=2) if x * y % p == 1]


def inductions(low: int, high: int, count: int) -> dict[tuple[tuple[int, int], ...], set[int]]:
    """Every set of `count` distinct pairs without 1·1, ascending, and its accepted primes."""
    found: dict[tuple[tuple[int, int], ...], set[int]] = {}
    for p in (p for p in PRIMES_TO_101 if low <= p <= high):
        pairs = [(x, y) for x, y in product(range(1, p), repeat=2) if x * y % p == 1 and x * y != 1]
        for chosen in combinations(pairs, count):
            found.setdefault(tuple(sorted(chosen)), set()).add(p)
    return found


def residue_class(problem: Problem) -> list[tuple[int, int, int]]:
    """The classes (p, smaller, larger) of a problem, from its content and its answer alone."""
    numbers, hidden = numbers_of(problem), int(problem.answer)
    if problem.task is Task.INDUCTION:
        return [(hidden, *sorted(pair)) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    return [(numbers[1], *sorted((numbers[0], hidden)))]
