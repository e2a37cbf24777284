"""What answers without skill would score on a set of problems: the bar that a model has to clear."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from rollout.prime_problems import Equations
from shared.episodes import Task


def baselines(task: Task, problems: Sequence[Equations], primes: Sequence[int]) -> dict[str, float]:
    """Expected accuracy of each trick that applies to `task`, over its `problems`; of none over no problems.

    primes: the range's, ascending
    random well-formed answer: uniform in 1..p-1; for induction among the primes above every number shown
    same number (y = x): the number shown, for deduction and abduction
    next prime above: the smallest prime above every number shown, for induction
    best constant: the one integer, of at most the largest modulus, that is right most often, found by trying all
    """
    if not problems:
        return {}
    largest = max(each.p for each in problems)
    best = max(Counter(n for each in problems for n in _accepted(task, each, largest)).values()) / len(problems)
    if task is not Task.INDUCTION:
        return {
            "random well-formed answer": fmean(1 / (each.p - 1) for each in problems),
            "same number (y = x)": fmean(each.is_self_inverse for each in problems),
            "best constant": best,
        }
    firsts = [bisect_right(primes, max(each.shown(task))) for each in problems]
    return {
        "random well-formed answer": fmean(1 / (len(primes) - first) for first in firsts),
        "next prime above": fmean(primes[first] == each.p for first, each in zip(firsts, problems, strict=True)),
        "best constant": best,
    }


def _accepted(task: Task, equations: Equations, largest: int) -> Iterable[int]:
    """The accepted answers in [-largest, largest]."""
    if task is Task.INDUCTION:
        return (equations.p,)
    return range((equations.hidden(task) + largest) % equations.p - largest, largest + 1, equations.p)
