"""Baselines, against an environment that is asked about every single answer."""

import random
from statistics import fmean

import pytest
from prime_reference import PRIMES_TO_101, answer, everything, make_prime, numbers_of

from shared.episodes import Task, Verdict

SMALL = make_prime()
LARGE = make_prime(5, 617)


def accuracy(env, problems, trick):
    return fmean(env.grade(problem, answer(trick(numbers_of(problem)))) is Verdict.CORRECT for problem in problems)


def prime_above(numbers):
    return min(p for p in PRIMES_TO_101 if p > max(numbers))


@pytest.mark.parametrize("env", [SMALL, make_prime(5, 31), make_prime(2, 31, induction_pairs=2)])
@pytest.mark.parametrize("task", Task)
def test_every_baseline_is_what_grading_its_answers_gives(env, task):
    problems = random.Random(0).sample(everything(env, task), 20)
    primes = [p for p in PRIMES_TO_101 if any(prime == p for prime in env._universe.primes)]
    found = env.baselines(problems)
    constants = range(-max(primes), max(primes) + 1)
    assert found.pop("best constant") == max(accuracy(env, problems, lambda _, c=c: c) for c in constants)
    rates = []
    for problem in problems:
        numbers = numbers_of(problem)
        guesses = [p for p in primes if p > max(numbers)] if task is Task.INDUCTION else range(1, numbers[1])
        rates.append(fmean(env.grade(problem, answer(guess)) is Verdict.CORRECT for guess in guesses))
    assert found.pop("random well-formed answer") == pytest.approx(fmean(rates))
    if task is Task.INDUCTION:
        assert found == {"next prime above": accuracy(env, problems, prime_above)}
    else:
        assert found == {"same number (y = x)": accuracy(env, problems, lambda numbers: numbers[0])}


def test_the_shortcuts_on_the_tiny_universe():
    assert SMALL.baselines(everything(SMALL, Task.DEDUCTION))["same number (y = x)"] == 11 / 35
    induction = SMALL.baselines(everything(SMALL, Task.INDUCTION))
    assert induction["next prime above"] == pytest.approx(0.53, abs=0.02)


def test_the_best_induction_constant_of_the_large_range_scores_about_two_percent():
    problems = everything(LARGE, Task.INDUCTION)
    best = LARGE.baselines(problems)["best constant"]
    assert best == pytest.approx(0.02, abs=0.003)
    primes = [p for p in range(5, 618) if all(p % d for d in range(2, p))]
    some = random.Random(0).sample(problems, 3000)
    bound = LARGE.baselines(some)["best constant"]
    assert max(sum(int(problem.answer) == p for problem in some) for p in primes) / 3000 == bound


def test_baselines_are_of_one_task():
    assert SMALL.baselines([]) == {}
    with pytest.raises(ValueError, match="one task"):
        SMALL.baselines([everything(SMALL, task)[0] for task in Task])
