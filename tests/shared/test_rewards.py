from fractions import Fraction
from math import comb

import pytest

from shared.config import RewardConfig
from shared.episodes import Verdict
from shared.rewards import (
    answer_diversity_bonus,
    expected_learnability,
    proposer_reward,
    repeat_penalty,
    solve_rate,
    solver_reward,
)

REWARDS = RewardConfig()


@pytest.mark.parametrize(
    ("verdict", "reward"), [(Verdict.CORRECT, 1.0), (Verdict.WRONG, -0.5), (Verdict.UNPARSABLE, -1.0)]
)
def test_solver_rewards(verdict, reward):
    assert solver_reward(verdict, 5, REWARDS) == reward


@pytest.mark.parametrize(("rate", "reward"), [(0.0, 0.0), (0.125, 0.875), (0.5, 0.5), (0.875, 0.125), (1.0, 0.0)])
def test_a_valid_proposal_earns_the_failure_share_unless_the_solve_rate_is_extreme(rate, reward):
    assert proposer_reward(Verdict.VALID, rate, 5, REWARDS) == reward


@pytest.mark.parametrize("verdict", [Verdict.INVALID, Verdict.COPY, Verdict.REPEAT])
@pytest.mark.parametrize("rate", [None, 0.5])
def test_invalid_copied_and_repeated_proposals_earn_the_same(verdict, rate):
    assert proposer_reward(verdict, rate, 5, REWARDS) == -0.5


def test_an_unparsable_proposal_earns_least():
    assert proposer_reward(Verdict.UNPARSABLE, None, 5, REWARDS) == -1.0


@pytest.mark.parametrize("rewards", [REWARDS, RewardConfig(length_penalty=0.25, invalid=-7)])
def test_a_held_out_proposal_earns_nothing_at_all(rewards):
    assert proposer_reward(Verdict.HELD_OUT, None, 5, rewards) == 0.0


def test_rewards_come_from_the_configuration():
    rewards = RewardConfig(correct=2, wrong=-3, unparsable=-4, invalid=-5, extreme_solve_rate=-0.5)
    assert [solver_reward(v, 5, rewards) for v in (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE)] == [2, -3, -4]
    assert proposer_reward(Verdict.COPY, None, 5, rewards) == -5
    assert proposer_reward(Verdict.UNPARSABLE, None, 5, rewards) == -4
    assert [proposer_reward(Verdict.VALID, rate, 5, rewards) for rate in (0.0, 1.0)] == [-0.5, -0.5]


@pytest.mark.parametrize("verdict", [Verdict.VALID, Verdict.INVALID, Verdict.COPY, Verdict.REPEAT, Verdict.HELD_OUT])
def test_an_attempt_cannot_have_a_proposals_verdict(verdict):
    with pytest.raises(ValueError, match=verdict):
        solver_reward(verdict, 5, REWARDS)


@pytest.mark.parametrize("verdict", [Verdict.CORRECT, Verdict.WRONG])
def test_a_proposal_cannot_have_an_attempts_verdict(verdict):
    with pytest.raises(ValueError, match=verdict):
        proposer_reward(verdict, 0.5, 5, REWARDS)


@pytest.mark.parametrize("rate", [None, -0.1, 1.1, float("nan")])
def test_a_valid_proposal_needs_a_solve_rate(rate):
    with pytest.raises(ValueError, match="solve rate"):
        proposer_reward(Verdict.VALID, rate, 5, REWARDS)


def test_the_solve_rate_is_the_share_that_is_correct():
    verdicts = [Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE, Verdict.CORRECT]
    assert solve_rate(verdicts) == 0.5
    assert solve_rate(verdicts[1:3]) == 0.0
    assert solve_rate(verdicts[:1]) == 1.0


@pytest.mark.parametrize("failure_rate", [Fraction(0), Fraction(3, 10), Fraction(37, 50), Fraction(1)])
@pytest.mark.parametrize("attempts", [2, 5, 8])
def test_expected_learnability_is_the_exact_mean_over_the_binomial(failure_rate, attempts):
    mean = sum(
        comb(attempts, solved)
        * (1 - failure_rate) ** solved
        * failure_rate ** (attempts - solved)
        * Fraction(proposer_reward(Verdict.VALID, solved / attempts, 5, REWARDS)).limit_denominator(attempts)
        for solved in range(attempts + 1)
    )
    assert mean == failure_rate - failure_rate**attempts
    assert expected_learnability(float(failure_rate), attempts) == pytest.approx(float(mean), abs=1e-15)


def test_expected_learnability_peaks_near_a_solve_rate_of_26_percent():
    best = max((q / 1000 for q in range(1001)), key=lambda q: expected_learnability(q, 8))
    assert 1 - best == pytest.approx(0.26, abs=0.005)


def test_each_response_token_costs_the_length_penalty_whatever_the_verdict():
    costly = RewardConfig(length_penalty=0.25)
    assert solver_reward(Verdict.CORRECT, 4, costly) == 0.0
    assert solver_reward(Verdict.UNPARSABLE, 4, costly) == -2.0
    assert proposer_reward(Verdict.VALID, 0.5, 4, costly) == -0.5
    assert proposer_reward(Verdict.REPEAT, None, 4, costly) == -1.5


@pytest.mark.parametrize(("share", "bonus"), [(1.0, 0.0), (0.25, 1.5), (0.5, 1.0)])
def test_the_rarer_its_answer_the_larger_a_proposals_bonus(share, bonus):
    assert answer_diversity_bonus(share, RewardConfig(answer_diversity_bonus=2)) == bonus
    assert answer_diversity_bonus(share, REWARDS) == 0.0


@pytest.mark.parametrize(("copies", "valid", "penalty"), [(1, 1, 0.0), (1, 9, 0.0), (2, 9, 0.25), (9, 9, 2.0)])
def test_a_repeated_proposal_pays_by_the_share_of_the_others_that_are_the_same(copies, valid, penalty):
    assert repeat_penalty(copies, valid, RewardConfig(repeat_penalty=2)) == penalty
    assert repeat_penalty(copies, valid, REWARDS) == penalty / 2
