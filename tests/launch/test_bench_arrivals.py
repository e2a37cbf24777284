"""What a sync cost, on timelines whose answer is known."""

import pytest

from launch.bench.arrivals import SyncTimes, sync_cost
from shared.errors import EngineError

STEP = 0.25


def steps(count: int, begin: float = 0.0, step: float = STEP) -> list[float]:
    return [begin + step * number for number in range(1, count + 1)]


def one_each(*timelines: list[float]) -> list[list[tuple[float, int]]]:
    return [[(time, 1) for time in times] for times in timelines]


def test_a_sync_that_nobody_notices_costs_nothing():
    cost = sync_cost(one_each(steps(40), steps(40)), SyncTimes(2.6, 4.1, 4.2), 8)
    assert cost.median_step == pytest.approx(STEP)
    assert cost.rate == pytest.approx(2 / STEP)
    assert (cost.pause, cost.silence, cost.tokens_lost) == pytest.approx((0, 0, 0))
    assert cost.context == 2 * 16


def test_a_standstill_is_paused_and_lost_for_its_length():
    times = steps(20) + steps(20, begin=5 + 1.5)
    cost = sync_cost(one_each(times, times), SyncTimes(4.0, 5.2, 6.4), 8)
    assert (cost.pause, cost.silence, cost.tokens_lost) == pytest.approx((1.5, 1.5, 1.5))
    assert cost.resume == pytest.approx(6.75 - 6.4 - STEP)


def test_slow_steps_while_staging_are_lost_tokens_and_hardly_a_pause():
    """8 steps of 0.5 s in place of 0.25 s: 2 s of generation, and no wait longer than a slow step."""
    times = steps(20) + steps(8, begin=5, step=0.5) + steps(12, begin=9)
    cost = sync_cost(one_each(times, times, times), SyncTimes(5.0, 8.8, 9.0), 8)
    assert cost.tokens_lost == pytest.approx(2)
    assert cost.pause == pytest.approx(0.25)


def test_a_request_left_waiting_counts_though_others_go_on():
    waiting = steps(20) + steps(20, begin=5 + 2)
    cost = sync_cost(one_each(steps(60), waiting), SyncTimes(4.0, 5.2, 5.3), 8)
    assert (cost.pause, cost.silence) == pytest.approx((2, 0))
    assert cost.tokens_lost == pytest.approx(1)  # half of the requests for 2 s
    assert cost.resume == pytest.approx(7.25 - 5.3 - STEP)


def test_a_sync_between_two_steps_does_not_count_the_halves_of_a_step():
    times = steps(40)
    costs = [sync_cost(one_each(times), SyncTimes(2.5 + part, 4.0, 4.0 + part), 8) for part in (0.01, 0.12, 0.24)]
    assert [cost.tokens_lost for cost in costs] == pytest.approx([0, 0, 0])


def test_gaps_away_from_the_sync_are_not_its_own():
    times = steps(8) + steps(12, begin=2 + 3) + steps(10, begin=8) + steps(8, begin=10.5 + 3)
    cost = sync_cost(one_each(times), SyncTimes(8.1, 8.3, 8.4), 8)
    assert cost.pause == pytest.approx(0)


def test_outputs_of_several_tokens_count_as_many():
    arrivals = [[(time, 3) for time in steps(40)]]
    cost = sync_cost(arrivals, SyncTimes(4.0, 5.2, 5.3), 8)
    assert cost.rate == pytest.approx(3 / STEP)
    assert cost.tokens_lost == pytest.approx(0)


@pytest.mark.parametrize("times", [steps(4) + steps(7, begin=6), steps(12, begin=5)])
def test_a_request_that_was_not_there_all_the_time_is_an_error(times):
    with pytest.raises(EngineError, match="allow longer responses"):
        sync_cost(one_each(steps(60), times), SyncTimes(4.0, 5.2, 5.9), 8)
