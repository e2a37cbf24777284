"""After a sync: the engine's weights are the learner's to the bit, and the probe's rounding is what it was."""

import logging

import numpy as np
import pytest

from learner.members import Member
from learner.parity import ParityProbe, check_weights
from shared.errors import WeightSyncError
from shared.weight_wire import LiveWeights

SENT = {"q": (1, 10), "k": (2, 20), "norm": (-3, 30), "words": (4, 40)}
FUSED, NORM, WORDS = (
    LiveWeights(("q", "k"), ((3, 30),)),
    LiveWeights(("norm",), ((-3, 30),)),
    LiveWeights(("words",), ((4, 40), (4, 40))),
)
OURS = np.array([-1.0, -2.0], dtype=np.float32)
WORKER, OTHER = Member("rollout-0", 1), Member("rollout-0", 2)


def test_what_was_sent_is_found_fused_and_in_every_copy():
    check_weights(SENT, [WORDS, FUSED, NORM], worker="w", version=3)


@pytest.mark.parametrize(
    ("live", "message"),
    [
        ([WORDS, LiveWeights(("q", "k"), ((3, 31),)), NORM], r"at version 3: 1 of 3 layers, among them q \+ k,"),
        ([WORDS, LiveWeights(("q", "k"), ((4, 30),)), NORM], r"1 of 3 layers, among them q \+ k,"),
        ([LiveWeights(("words",), ((4, 40), (4, 39))), FUSED, NORM], "1 of 3 layers, among them words,"),
        ([LiveWeights(("words",), ((4, 40), None)), FUSED, NORM], "1 of 3 layers, among them words,"),
        ([LiveWeights(("words",), (None,)), FUSED, LiveWeights(("norm",), ((0, 0),))], "2 of 3 layers"),
        ([WORDS, FUSED], "accounts for other weights than were sent to it, such as norm"),
        ([WORDS, FUSED, NORM, LiveWeights(("b",), ((0, 0),))], "such as b"),
        ([WORDS, FUSED, NORM, NORM], "such as one twice"),
        ([], "such as k"),
    ],
)
def test_other_weights_are_an_error_that_names_them(live, message):
    with pytest.raises(WeightSyncError, match=message):
        check_weights(SENT, live, worker="w", version=3)


def checked(probe: ParityProbe, difference: float, member: Member = WORKER) -> float:
    return probe.check(member, OURS, (OURS + difference).tolist(), version=3)


def test_the_mean_difference_is_judged_by_that_of_the_worker_s_first_sync(caplog):
    caplog.set_level(logging.WARNING)
    probe = ParityProbe(tolerance=0.5)
    assert probe.check(WORKER, OURS, [-1.2, -2.0], version=0) == pytest.approx(0.1)
    for difference in (0.29, 0.1, 0.01):
        assert checked(probe, difference) == pytest.approx(difference, rel=1e-5)
    assert caplog.messages == []
    for difference in (0.31, 0.5, 0.9):
        checked(probe, difference)
    [message] = caplog.messages  # until there is three times more to tell
    assert message.startswith("worker rollout-0 and the learner drift apart: 0.31 nats on average over the probe at ")
    assert checked(probe, 0.99) < 1
    assert probe.first(WORKER) == pytest.approx(0.1)
    with pytest.raises(
        WeightSyncError, match=r"differ by 1.01 nats on average, 0.1 after its first sync, tolerance 0.5"
    ):
        checked(probe, 1.01)


def test_rounding_of_float32_is_not_worth_a_word(caplog):
    probe = ParityProbe(tolerance=0.01)
    for difference in (1e-7, 1e-5, 9e-5):
        checked(probe, difference)
    assert caplog.messages == []
    checked(probe, 2e-4)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("theirs", [[-1.0, -3.1], [-1.0, float("nan")], [-1.0], []])
def test_garbage_ends_a_run_at_the_first_sync_and_later(theirs):
    probe = ParityProbe(tolerance=0.5)
    for _ in range(2):
        with pytest.raises(WeightSyncError, match=r"sync.probe_tolerance|scored \d probe tokens, not 2"):
            probe.check(WORKER, OURS, theirs, version=3)
        checked(probe, 0.01)


def test_each_incarnation_has_a_first_sync_of_its_own():
    probe = ParityProbe(tolerance=0.01)
    checked(probe, 0.001)
    checked(probe, 0.002, OTHER)
    assert (probe.first(WORKER), probe.first(OTHER)) == pytest.approx((0.001, 0.002), rel=1e-2)
