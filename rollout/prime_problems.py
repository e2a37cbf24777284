"""The universe of prime inversion: every problem over a range of primes, numbered, and which are held out."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import comb, factorial, gcd

from shared.episodes import Task

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Equations:
    """x·y ≡ 1 (mod p) for every pair (x, y), with 1 ≤ x, y < p: all parts of one problem.

    pairs: ascending; one for deduction and abduction
    """

    p: int
    pairs: tuple[Pair, ...]

    def shown(self, task: Task) -> tuple[int, ...]:
        """What the solver is given: x, p; y, p; or the pairs."""
        if task is Task.INDUCTION:
            return tuple(number for pair in self.pairs for number in pair)
        x, y = self.pairs[0]
        return (x if task is Task.DEDUCTION else y, self.p)

    def hidden(self, task: Task) -> int:
        """What the solver has to find: y; x; or p."""
        x, y = self.pairs[0]
        return {Task.DEDUCTION: y, Task.ABDUCTION: x, Task.INDUCTION: self.p}[task]

    @property
    def is_self_inverse(self) -> bool:
        """Whether x = y in some pair."""
        return any(x == y for x, y in self.pairs)

    @property
    def family(self) -> str:
        """Equal for all problems that differ in the orientation of pairs only."""
        return f"{self.p}:" + ";".join(f"{low},{high}" for low, high in sorted(map(_oriented, self.pairs)))


class Universe:
    """All problems for the primes in [low, high], with `pairs` pairs in an induction problem.

    The problems of a task are numbered by p, then by the numbers shown, so that those up to any prime come first. A
    prime p has p − 1 deduction, p − 1 abduction and C(p − 2, pairs) induction problems: 1·1 is no pair of these.

    share: of the residue classes (p, {x, y}) that are held out. A class keeps its place in [0, 1) whatever the range,
        and is held out below `share`.
    """

    def __init__(self, low: int, high: int, *, pairs: int, share: float) -> None:
        self.primes = _primes(low, high)
        self._prime_set = frozenset(self.primes)
        self.share = share
        self._size = {task: pairs if task is Task.INDUCTION else 1 for task in Task}
        self._totals = {task: self._running_totals(task) for task in Task}

    def total(self, task: Task, largest: int | None = None) -> int:
        """The number of problems for primes up to `largest`, by default all."""
        place = len(self.primes) if largest is None else bisect_right(self.primes, largest)
        return self._totals[task][place - 1] if place else 0

    def at(self, task: Task, index: int) -> Equations:
        """Problem `index` of `task`."""
        totals = self._totals[task]
        place = bisect_right(totals, index)
        p = self.primes[place]
        numbers = _combination(index - (totals[place - 1] if place else 0), self._size[task])
        if task is Task.INDUCTION:
            return Equations(p, tuple((n + 2, pow(n + 2, -1, p)) for n in numbers))
        return self._one_pair(task, numbers[0] + 1, p)

    def solve(self, task: Task, shown: Sequence[int]) -> Equations | None:
        """The whole of the problem that shows these numbers; None if there is no such problem.

        For induction the prime is unique: two primes above every number shown cannot both divide x·y − 1, which is
        positive and less than the square of the larger of x and y.
        """
        if task is not Task.INDUCTION:
            number, p = shown
            return self._one_pair(task, number, p) if p in self._prime_set and 1 <= number < p else None
        pairs = list(zip(shown[::2], shown[1::2], strict=True))
        if min(shown) < 1 or (1, 1) in pairs or len(set(pairs)) < len(pairs):
            return None
        divisor = gcd(*(x * y - 1 for x, y in pairs))
        p = next((p for p in self.primes_above(shown) if divisor % p == 0), 0)
        return Equations(p, tuple(sorted(pairs))) if p else None

    def accepts(self, p: int, shown: Sequence[int], pairs: Sequence[Pair]) -> bool:
        """Whether `p` answers the induction problem that shows these numbers and is checked on these pairs."""
        return p in self._prime_set and p > max(shown) and all(x * y % p == 1 for x, y in pairs)

    def primes_above(self, shown: Sequence[int]) -> list[int]:
        """The primes of the range that are larger than every number shown."""
        return self.primes[bisect_right(self.primes, max(shown)) :]

    def is_held_out(self, equations: Equations) -> bool:
        """Whether any of its residue classes is."""
        return self.share > 0 and any(_place(equations.p, pair) < self.share for pair in equations.pairs)

    def further_pairs(self, equations: Equations, count: int) -> list[Pair]:
        """`count` more pairs of the same prime, or as many as there are, always the same for the same equations.

        They share no number with each other or with those shown, so none is another one swapped; none is 1·1, and
        none is of a class that is held out.
        """
        if count == 0:  # with every attempt at an induction problem
            return []
        p, found = equations.p, list[Pair]()
        used = set(equations.shown(Task.INDUCTION))
        for index in in_random_order(p - 2, random.Random(f"further pairs {equations.family}")):
            if len(found) == count:
                break
            pair = x, y = index + 2, pow(index + 2, -1, p)
            if x not in used and not self.is_held_out(Equations(p, (pair,))):
                found.append(pair)
                used |= {x, y}
        return found

    def _running_totals(self, task: Task) -> list[int]:
        spare = 2 if task is Task.INDUCTION else 1
        return list(accumulate(comb(p - spare, self._size[task]) for p in self.primes))

    @staticmethod
    def _one_pair(task: Task, number: int, p: int) -> Equations:
        inverse = pow(number, -1, p)
        return Equations(p, ((number, inverse) if task is Task.DEDUCTION else (inverse, number),))


def in_random_order(total: int, rng: random.Random) -> Iterator[int]:
    """The numbers below `total`, each once; lazily, for `total` may be astronomic (sparse Fisher-Yates)."""
    moved: dict[int, int] = {}
    for last in range(total - 1, -1, -1):
        pick = rng.randrange(last + 1)
        yield moved.get(pick, pick)
        moved[pick] = moved.pop(last, last)


def _oriented(pair: Pair) -> Pair:
    return min(pair), max(pair)


def _place(p: int, pair: Pair) -> float:
    """Where in [0, 1) the residue class stands: a hash of nothing but the class."""
    low, high = _oriented(pair)
    digest = hashlib.sha256(f"held out {p}:{low},{high}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _combination(rank: int, size: int) -> list[int]:
    """Set number `rank` of the sets of `size` natural numbers, in colexicographic order; ascending.

    The combinatorial number system (Knuth, The Art of Computer Programming 4A, 7.2.1.3).
    """
    chosen = []
    for k in range(size, 0, -1):
        chosen.append(_largest_number(rank, k))
        rank -= comb(chosen[-1], k)
    return chosen[::-1]


def _largest_number(rank: int, k: int) -> int:
    """The largest n with C(n, k) <= rank: a guess from C(n, k) ≈ (n − (k − 1)/2)^k / k!, then put right."""
    if k == 1:
        return rank
    n = int((rank * factorial(k)) ** (1 / k) + (k - 1) / 2)
    while comb(n, k) > rank:
        n -= 1
    while comb(n + 1, k) <= rank:
        n += 1
    return n


def _primes(low: int, high: int) -> list[int]:
    """The primes in [low, high], by the sieve of Eratosthenes."""
    sieve = bytearray([1]) * (high + 1)
    for n in range(2, int(high**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, high + 1, n)))
    return [n for n in range(max(low, 2), high + 1) if sieve[n]]
