import random

import pytest

from shared.config import RewardConfig
from shared.episodes import Verdict
from shared.rewards import expected_learnability, proposer_reward, solver_reward

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


def test_rewards_come_from_the_configuration():
    rewards = RewardConfig(correct=2, wrong=-3, unparsable=-4, invalid=-5, extreme_solve_rate=-0.5)
    assert [solver_reward(v, 5, rewards) for v in (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE)] == [2, -3, -4]
    assert proposer_reward(Verdict.COPY, None, 5, rewards) == -5
    assert proposer_reward(Verdict.UNPARSABLE, None, 5, rewards) == -4
    assert [proposer_reward(Verdict.VALID, rate, 5, rewards) for rate in (0.0, 1.0)] == [-0.5, -0.5]


@pytest.mark.parametrize("verdict", [Verdict.VALID, Verdict.INVALID, Verdict.COPY, Verdict.REPEAT])
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


@pytest.mark.parametrize("failure_rate", [0.0, 0.3, 0.74, 1.0])
def test_expected_learnability_is_the_mean_reward_of_independent_attempts(failure_rate):
    rng = random.Random(0)
    attempts, rounds = 8, 20_000
    total = 0.0
    for _ in range(rounds):
        solved = sum(rng.random() >= failure_rate for _ in range(attempts))
        total += proposer_reward(Verdict.VALID, solved / attempts, 5, REWARDS)
    assert total / rounds == pytest.approx(expected_learnability(failure_rate, attempts), abs=0.01)


def test_expected_learnability_peaks_near_a_solve_rate_of_26_percent():
    best = max((q / 1000 for q in range(1001)), key=lambda q: expected_learnability(q, 8))
    assert 1 - best == pytest.approx(0.26, abs=0.005)


def test_each_response_token_costs_the_length_penalty_whatever_the_verdict():
    costly = RewardConfig(length_penalty=0.25)
    assert solver_reward(Verdict.CORRECT, 4, costly) == 0.0
    assert solver_reward(Verdict.UNPARSABLE, 4, costly) == -2.0
    assert proposer_reward(Verdict.VALID, 0.5, 4, costly) == -0.5
    assert proposer_reward(Verdict.REPEAT, None, 4, costly) == -1.5
