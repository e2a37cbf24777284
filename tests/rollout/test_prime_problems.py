import random
from itertools import combinations, islice
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prime_reference import PRIMES_TO_101, inductions

from rollout.prime_problems import Equations, Universe, _combination, in_random_order
from shared.episodes import Task


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_problems_are_numbered_by_prime_each_once(pairs):
    universe = Universe(2, 13, pairs=pairs, share=0)
    listed = [universe.at(Task.INDUCTION, index) for index in range(universe.total(Task.INDUCTION))]
    assert {each.pairs: {each.p} for each in listed} == inductions(2, 13, pairs)
    assert len(set(listed)) == len(listed)
    assert [each.p for each in listed] == sorted(each.p for each in listed)


@given(st.integers(1, 8), st.integers(0, 10**38))
def test_the_number_of_a_set_of_residues_is_unranked_exactly(size, rank):
    chosen = _combination(rank, size)
    assert chosen == sorted(set(chosen))
    assert sum(comb(number, place + 1) for place, number in enumerate(chosen)) == rank


@pytest.mark.parametrize("task", Task)
def test_totals_up_to_a_prime_count_the_problems_up_to_it(task):
    universe = Universe(5, 23, pairs=2, share=0)
    primes = [universe.at(task, index).p for index in range(universe.total(task))]
    for largest in range(2, 30):
        assert universe.total(task, largest) == sum(p <= largest for p in primes)


@pytest.mark.parametrize("task", Task)
def test_a_problem_is_found_again_by_the_numbers_it_shows(task):
    universe = Universe(2, 100_000, pairs=3, share=0)
    rng = random.Random(0)
    for _ in range(50):
        equations = universe.at(task, rng.randrange(universe.total(task)))
        assert all(x * y % equations.p == 1 for x, y in equations.pairs)
        assert universe.solve(task, equations.shown(task)) == equations


def test_a_prime_below_the_range_is_no_answer():
    # 5 · 8 = 39 + 1 and 39 = 3 · 13: there is no prime from 17 on.
    assert Universe(2, 23, pairs=1, share=0).solve(Task.INDUCTION, (5, 8)) == Equations(13, ((5, 8),))
    assert Universe(17, 23, pairs=1, share=0).solve(Task.INDUCTION, (5, 8)) is None


def test_an_induction_answer_must_fit_the_further_pairs_too():
    universe = Universe(2, 31, pairs=1, share=0)
    assert universe.accepts(13, (5, 8), [(5, 8), (2, 7)])
    assert not universe.accepts(13, (5, 8), [(5, 8), (2, 6)])
    assert not universe.accepts(3, (5, 8), [(5, 8)])
    assert not universe.accepts(39, (5, 8), [(5, 8)])
    assert not universe.accepts(-13, (5, 8), [(5, 8)])


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_further_pairs_are_others_of_the_same_prime_and_never_held_out(share, count):
    universe = Universe(2, 47, pairs=2, share=share)
    for index in range(0, universe.total(Task.INDUCTION), 11):
        equations = universe.at(Task.INDUCTION, index)
        p, shown = equations.p, equations.shown(Task.INDUCTION)
        further = universe.further_pairs(equations, count)
        assert further == universe.further_pairs(equations, count)
        assert all(x * y % p == 1 and x * y != 1 and not {x, y} & set(shown) for x, y in further)
        assert not any(universe.is_held_out(Equations(p, (pair,))) for pair in further)
        assert len({n for pair in further for n in pair}) == sum(len(set(pair)) for pair in further)
        open_classes = {
            frozenset((x, pow(x, -1, p)))
            for x in range(2, p)
            if x not in shown and not universe.is_held_out(Equations(p, ((x, pow(x, -1, p)),)))
        }
        assert len(further) == min(count, len(open_classes))


def test_a_random_order_has_every_number_once_and_every_order_equally_often():
    counts = {}
    rng = random.Random(0)
    for _ in range(6000):
        order = tuple(in_random_order(3, rng))
        counts[order] = counts.get(order, 0) + 1
    assert set(map(frozenset, counts)) == {frozenset(range(3))}
    assert len(counts) == 6
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())
    assert sorted(in_random_order(1000, rng)) == list(range(1000))
    assert list(in_random_order(0, rng)) == []
    assert len(set(islice(in_random_order(10**40, rng), 100))) == 100


def test_the_primes_are_those_of_trial_division():
    assert Universe(2, 101, pairs=1, share=0).primes == PRIMES_TO_101
    assert Universe(14, 31, pairs=1, share=0).primes == [17, 19, 23, 29, 31]


def test_families_forget_orientation_and_order_and_nothing_else():
    universe = Universe(11, 11, pairs=2, share=0)
    listed = [universe.at(Task.INDUCTION, index) for index in range(universe.total(Task.INDUCTION))]
    for one, other in combinations(listed, 2):
        alike = sorted(map(sorted, one.pairs)) == sorted(map(sorted, other.pairs))
        assert (one.family == other.family) == alike
