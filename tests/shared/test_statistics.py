import itertools
import math
import random
from fractions import Fraction

import pytest

from shared.statistics import mean_interval, paired_difference_interval, pass_at_k, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, Stat. Med. 17:857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_a_wilson_limit_is_where_the_score_test_just_rejects():
    z = 2.5758293035489004  # standard normal quantile of 0.995
    for limit in wilson_interval(17, 40, confidence=0.99):
        assert abs(17 / 40 - limit) / math.sqrt(limit * (1 - limit) / 40) == pytest.approx(z)


@pytest.mark.parametrize("trials", range(1, 60))
def test_wilson_limits_touch_the_ends_exactly_and_never_pass_them(trials):
    for successes in range(trials + 1):
        low, high = wilson_interval(successes, trials)
        assert 0 <= low <= successes / trials <= high <= 1
        assert (low == 0, high == 1) == (successes == 0, successes == trials)


@pytest.mark.parametrize(
    ("only_first", "only_second", "trials", "low", "high"),
    # The worked examples of R's statpsych::ci.prop.ps and of Bonett's own code.
    [(26, 4, 48, 0.2548067, 0.6251933), (26, 4, 40, 0.3126438, 0.7349752)],
)
def test_paired_intervals_are_the_published_ones(only_first, only_second, trials, low, high):
    assert paired_difference_interval(only_first, only_second, trials) == pytest.approx((low, high), abs=5e-8)
    assert paired_difference_interval(only_second, only_first, trials) == pytest.approx((-high, -low), abs=5e-8)


def test_a_paired_interval_stays_a_difference_of_shares():
    assert paired_difference_interval(2, 0, 2)[1] == 1
    assert paired_difference_interval(0, 2, 2)[0] == -1
    low, high = paired_difference_interval(0, 0, 50)
    assert low < 0 < high


def test_the_mean_of_one_estimate_has_its_interval():
    assert mean_interval([(0.9, 0.7, 0.95)]) == pytest.approx((0.7, 0.95))


def test_errors_of_a_mean_add_up_in_squares():
    low, high = mean_interval([(0.2, 0.1, 0.5), (0.6, 0.6, 0.6)])
    assert (low, high) == pytest.approx((0.4 - 0.05, 0.4 + 0.15))
    low, high = mean_interval([(0.5, 0.4, 0.6)] * 4)
    assert (low, high) == pytest.approx((0.45, 0.55))


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    rng, shares, trials, rounds = random.Random(0), (0.05, 0.6, 0.95), 40, 2000
    truth, covered = sum(shares) / 3, 0
    for _ in range(rounds):
        counts = [sum(rng.random() < share for _ in range(trials)) for share in shares]
        low, high = mean_interval([(count / trials, *wilson_interval(count, trials)) for count in counts])
        covered += low <= truth <= high
    assert 0.93 <= covered / rounds <= 0.98


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(samples):
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
        assert pass_at_k(samples, correct, k) == float(Fraction(sum(map(any, subsets)), len(subsets)))


def test_pass_at_k_is_the_papers_product_and_stays_exact_for_many_samples():
    def product(n: int, c: int, k: int) -> float:
        return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))

    for n, c, k in ((200, 3, 100), (1000, 1, 7), (5000, 2500, 1)):
        assert pass_at_k(n, c, k) == pytest.approx(product(n, c, k), rel=1e-12)
    assert pass_at_k(100_000, 1, 1) == 1e-5


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: wilson_interval(1, 0),
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(-1, 2),
        lambda: wilson_interval(1, 2, confidence=1),
        lambda: paired_difference_interval(2, 2, 3),
        lambda: mean_interval([]),
        lambda: pass_at_k(3, 1, 4),
        lambda: pass_at_k(3, 1, 0),
        lambda: pass_at_k(3, 4, 1),
    ],
)
def test_impossible_counts_are_refused(impossible):
    with pytest.raises(ValueError, match=r"trials|confidence|estimates|pass@"):
        impossible()
