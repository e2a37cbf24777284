"""Whatever comes and goes in whatever order: every ticket once, nobody on unproven weights, nothing too old."""

import random

import pytest
from factories import make_problem
from hypothesis import given
from hypothesis import strategies as st
from simulated_run import SimulatedRun

from shared.episodes import Task

SEEDS = {task: [make_problem(f"key {i}", task) for i in range(5)] for task in Task}
EVENTS = [
    "join",
    "fail",
    "vanish",
    "cut",
    "reconnect",
    "give_up",
    "bring_up",
    *["close"] * 3,
    "close_several",
    "close_again",
    "train",
]
STALENESS = [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]


@given(st.sampled_from(STALENESS), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 9)), max_size=120))
def test_every_ticket_closes_once_on_proven_weights_whoever_comes_and_goes(bounds, events):
    max_staleness, every = bounds
    run = SimulatedRun(SEEDS, max_staleness=max_staleness, every=every)
    for event, which in events:
        getattr(run, event)(which)
    run.finish(len(run.batches) + 2)
    run.check()


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_no_trained_token_is_older_than_the_bound(max_staleness):
    """Long runs in which workers are lost all the time; tokens as old as the bound admits do occur."""
    oldest, reissues = 0, 0
    for every in range(1, max_staleness + 2):
        rng = random.Random(every)
        run = SimulatedRun(SEEDS, max_staleness=max_staleness, every=every)
        for _ in range(2500):
            events = ["join", "fail", "cut", "reconnect", "give_up", "bring_up", "close", "train"]
            event = rng.choices(events, [1, 1, 2, 4, 1, 4, 40, 6])[0]
            getattr(run, event)(rng.randrange(10))
        run.check()
        assert len(run.batches) > 20
        oldest, reissues = max(oldest, *run.staleness()), reissues + run.reissues()
    assert oldest == max_staleness
    assert reissues > 0
