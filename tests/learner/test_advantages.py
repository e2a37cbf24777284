import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantages import task_relative_advantages


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
    rows=st.lists(st.tuples(st.sampled_from([1.0, -0.5, -1.0, 0.625]), st.integers(0, 5)), min_size=1, max_size=60),
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
