"""Arms in turn."""

import pytest

from launch.bench.rounds import in_turn, median_ratio, seconds


def test_arms_alternate_and_the_first_round_is_not_counted():
    ran: list[str] = []

    def arm(name: str):
        def run() -> float:
            ran.append(name)
            return len(ran)

        return run

    found = in_turn({"ours": arm("ours"), "plain": arm("plain")}, 2)
    assert ran == ["plain", "ours", "ours", "plain", "plain", "ours"]
    assert found == {"ours": [3, 6], "plain": [4, 5]}


def test_ratios_are_taken_within_a_round():
    assert median_ratio([2, 30, 8], [1, 10, 2]) == 3
    with pytest.raises(ValueError, match="shorter"):
        median_ratio([1, 2], [1])


def test_work_is_timed():
    assert 0 <= seconds(lambda: None) < 1
