import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantages import RunningAdvantages, differences_from_group, task_relative_advantages
from shared.errors import CheckpointError

REWARDS = [1.0, -0.5, -1.0, 0.625]


def reference(rewards, cells, std_floor=0.0):
    """method.md section 4, written out one completion at a time."""
    advantages = []
    for own_reward, own_cell in zip(rewards, cells, strict=True):
        peers = [r for r, c in zip(rewards, cells, strict=True) if c == own_cell]
        if len(peers) < 2:
            advantages.append(0.0)
            continue
        mean = sum(peers) / len(peers)
        std = (sum((r - mean) ** 2 for r in peers) / (len(peers) - 1)) ** 0.5
        advantages.append(0.0 if std < 1e-4 else (own_reward - mean) / (max(std, std_floor) + 1e-6))
    return np.array(advantages)


def test_two_cells_by_hand():
    advantages = task_relative_advantages([1.0, 0.0, 10.0, 30.0], ["a", "a", "b", "b"])
    std_a, std_b = 0.5**0.5, 200**0.5
    assert advantages == pytest.approx(
        [0.5 / (std_a + 1e-6), -0.5 / (std_a + 1e-6), -10 / (std_b + 1e-6), 10 / (std_b + 1e-6)], rel=1e-12
    )


@given(
    rows=st.lists(st.tuples(st.sampled_from(REWARDS), st.integers(0, 5)), min_size=1, max_size=60),
    std_floor=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_equals_the_reference_whatever_the_cells(rows, std_floor):
    rewards, cells = [r for r, _ in rows], [c for _, c in rows]
    found = task_relative_advantages(rewards, cells, std_floor=std_floor)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, reference(rewards, cells, std_floor), rtol=1e-9, atol=1e-12)


def test_cells_may_be_an_integer_array():
    rewards = [1.0, 0.0, 1.0, 3.0]
    by_number = task_relative_advantages(rewards, np.array([7, 2, 7, 2]))
    assert by_number.tolist() == task_relative_advantages(rewards, ["x", "y", "x", "y"]).tolist()


@pytest.mark.parametrize("rewards", [[0.3], [1.0, 1.0, 1.0], [1.0, 1.0 + 1e-5]])
def test_a_cell_without_spread_teaches_nothing(rewards):
    assert task_relative_advantages(rewards, ["cell"] * len(rewards)).tolist() == [0.0] * len(rewards)


def test_std_floor_bounds_the_odd_one_out():
    rewards, cells = [1.0] * 511 + [-0.5], ["cell"] * 512
    assert task_relative_advantages(rewards, cells).min() == pytest.approx(-22.6, abs=0.1)
    assert task_relative_advantages(rewards, cells, std_floor=0.5).min() == pytest.approx(-3.0, abs=0.01)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="do not fit"):
        task_relative_advantages([1.0, 2.0], ["a"])


def test_lengths_of_responses_must_agree_too():
    with pytest.raises(ValueError, match="do not fit"):
        task_relative_advantages([1.0, 2.0], ["a", "a"], lengths=[1])


def whitened(rewards, lengths, std_floor=0.0):
    """One cell by masked whitening: every reward stands at every response token."""
    tokens = np.repeat(rewards, lengths)
    if len(rewards) < 2 or tokens.std(ddof=1) < 1e-4:
        return np.zeros(len(rewards))
    return (np.array(rewards) - tokens.mean()) / max(np.sqrt(tokens.var(ddof=1) + 1e-8), std_floor)


cell_rows = st.lists(st.tuples(st.sampled_from(REWARDS), st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=40)


@given(rows=cell_rows, std_floor=st.sampled_from([0.0, 1.0]))
def test_length_weighted_statistics_are_those_of_the_tokens(rows, std_floor):
    rewards, cells, lengths = (np.array(column) for column in zip(*rows, strict=True))
    found = task_relative_advantages(rewards, cells, lengths=lengths, std_floor=std_floor)
    for cell in set(cells.tolist()):
        own = cells == cell
        expected = whitened(rewards[own], lengths[own], std_floor)
        np.testing.assert_allclose(found[own], expected, rtol=1e-9, atol=1e-12)


def test_length_weighting_by_hand():
    """Tokens 1 1 1 0: mean 3/4, and the sum of squares 3/4 over N - 1 = 3 is the variance."""
    found = task_relative_advantages([1.0, 0.0], ["a", "a"], lengths=[3, 1])
    assert found == pytest.approx(np.array([0.25, -0.75]) / np.sqrt(0.25 + 1e-8), rel=1e-14)


@pytest.mark.parametrize("lengths", [[4], [1]])
def test_a_single_long_response_teaches_nothing(lengths):
    assert task_relative_advantages([0.3], ["a"], lengths=lengths).tolist() == [0.0]


def test_a_reward_is_compared_with_its_group():
    found = differences_from_group([1.0, 0.0, 5.0, 3.0, 7.0], [0, 0, 1, 1, None])
    assert found.tolist() == [0.5, -0.5, 1.0, -1.0, 7.0]


def test_group_means_may_be_over_tokens():
    found = differences_from_group([1.0, 0.0, 5.0], [0, 0, 1], lengths=[3, 1, 2])
    assert found.tolist() == [0.25, -0.75, 0.0]


@given(rows=st.lists(st.tuples(st.sampled_from(REWARDS), st.integers(0, 4)), min_size=2, max_size=40))
def test_group_advantages_are_differences_over_the_cells_deviation(rows):
    rewards, groups = [r for r, _ in rows], [g for _, g in rows]
    means = {g: np.mean([r for r, other in rows if other == g]) for g in groups}
    differences = np.array([r - means[g] for r, g in rows])
    std = np.sqrt(np.sum((differences - differences.mean()) ** 2) / (len(rows) - 1))
    found = task_relative_advantages(differences_from_group(rewards, groups), ["solver"] * len(rows))
    np.testing.assert_allclose(found, 0 if std < 1e-4 else differences / (std + 1e-6), rtol=1e-9, atol=1e-9)


def test_the_rewards_that_were_passed_in_stay_what_they_are():
    rewards = np.array([1.0, 0.0])
    differences_from_group(rewards, [0, 0])
    assert rewards.tolist() == [1.0, 0.0]


def ema_reference(batches, decay, std_floor=0.0):
    """Of one cell, batch after batch, in the words of method.md section 4: read, then update."""
    mean = variance = None
    for rewards in map(np.array, batches):
        if mean is None:
            if len(rewards) < 2 or rewards.std(ddof=1) < 1e-4:
                yield np.zeros(len(rewards))
                continue
            mean, variance = rewards.mean(), rewards.var(ddof=1)
            yield (rewards - mean) / (max(np.sqrt(variance), std_floor) + 1e-6)
            continue
        std = np.sqrt(variance)
        yield np.zeros(len(rewards)) if std < 1e-4 else (rewards - mean) / (max(std, std_floor) + 1e-6)
        mean = decay * mean + (1 - decay) * rewards.mean()
        if len(rewards) > 1:
            variance = decay * variance + (1 - decay) * rewards.var(ddof=1)


reward_batches = st.lists(st.lists(st.sampled_from(REWARDS), min_size=1, max_size=6), min_size=1, max_size=12)


@given(batches=reward_batches, decay=st.sampled_from([0.0, 0.5, 0.95]), std_floor=st.sampled_from([0.0, 0.7]))
def test_running_statistics_equal_the_reference_over_many_batches(batches, decay, std_floor):
    running = RunningAdvantages(decay=decay, std_floor=std_floor)
    for rewards, expected in zip(batches, ema_reference(batches, decay, std_floor), strict=True):
        found = running.advantages(rewards, ["cell"] * len(rewards))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_running_statistics_by_hand():
    running = RunningAdvantages(decay=0.75)
    cells = ["a", "a"]
    assert running.advantages([1.0, 3.0], cells) == pytest.approx(np.array([-1, 1]) / (2**0.5 + 1e-6))
    # Read before they are updated: still mean 2 and variance 2.
    assert running.advantages([6.0, 6.0], cells) == pytest.approx(np.array([4, 4]) / (2**0.5 + 1e-6))
    # Then 3/4 of the old and 1/4 of the batch's: mean 3, variance 3/2.
    assert running.advantages([3.0, 0.0], cells) == pytest.approx(np.array([0, -3]) / (1.5**0.5 + 1e-6))


def test_running_statistics_may_be_over_tokens():
    running = RunningAdvantages(decay=0.5)
    running.advantages([1.0, 0.0], ["a", "a"], lengths=[3, 1])
    found = running.advantages([0.75, 0.0], ["a", "a"], lengths=[1, 1])
    assert found == pytest.approx(np.array([0, -0.75]) / np.sqrt(0.25 + 1e-8), rel=1e-12)


def test_cells_run_by_themselves():
    together, alone = RunningAdvantages(decay=0.9), RunningAdvantages(decay=0.9)
    for rewards in ([1.0, 0.0, 5.0, 9.0], [0.5, 0.0, 100.0, 300.0]):
        found = together.advantages(rewards, ["a", "a", "b", "b"])
        assert found[:2].tolist() == alone.advantages(rewards[:2], ["a", "a"]).tolist()


def test_a_batch_without_spread_does_not_start_a_cell_but_teaches_a_running_one():
    running = RunningAdvantages(decay=0.9)
    assert running.advantages([5.0, 5.0], ["a", "a"]).tolist() == [0.0, 0.0]
    assert running.advantages([7.0], ["a"]).tolist() == [0.0]
    assert running.state() == {}
    running.advantages([1.0, 0.0], ["a", "a"])
    assert (running.advantages([1.0, 1.0], ["a", "a"]) > 0.5).all()
    assert (running.advantages([0.0], ["a"]) < -0.5).all()


def test_a_restored_cell_goes_on_exactly():
    g = np.random.default_rng(0)
    batches = [g.normal(size=4) for _ in range(6)]
    cells = ["a", "a", "b", "b"]
    first = RunningAdvantages(decay=0.95)
    for rewards in batches[:3]:
        first.advantages(rewards, cells)
    second = RunningAdvantages(decay=0.95)
    second.restore(json.loads(json.dumps(first.state())))
    for rewards in batches[3:]:
        assert second.advantages(rewards, cells).tolist() == first.advantages(rewards, cells).tolist()
    assert second.state() == first.state()


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {"a": 1.0},
        {"a": {"mean": 0.0}},
        {"a": {"mean": 0.0, "variance": "1"}},
        {"a": {"mean": 0.0, "variance": -1.0}},
        {"a": {"mean": float("nan"), "variance": 1.0}},
        {"a": {"mean": 0.0, "variance": float("inf")}},
        {"a": {"mean": 0.0, "variance": 1.0, "decay": 0.9}},
    ],
    ids=str,
)
def test_a_malformed_state_is_refused_and_leaves_the_old_one(state):
    running = RunningAdvantages(decay=0.9)
    running.advantages([1.0, 0.0], ["a", "a"])
    before = running.state()
    with pytest.raises(CheckpointError, match="running reward statistics"):
        running.restore(state)
    assert running.state() == before
