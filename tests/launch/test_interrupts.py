"""Ctrl-C and SIGTERM: what is raised and when, and what is left as it was."""

import os
import signal

import pytest

from launch.interrupts import Interrupts
from shared.errors import RunInterruptedError


class Told:
    times = 0

    def __call__(self):
        self.times += 1


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def interrupts(tmp_path, told):
    """Whatever happens, the test's own handlers come back."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    yield Interrupts(tmp_path / "stop", told)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def send(*signals):
    for each in signals:
        os.kill(os.getpid(), each)


def test_once_asks_for_an_end_after_the_step(interrupts, told, tmp_path):
    with interrupts:
        send(signal.SIGINT)
        interrupts.check()
    assert (tmp_path / "stop").exists()
    assert told.times == 1


def test_where_the_learner_cannot_be_asked_the_run_ends_at_once_and_nothing_is_raised_in_the_middle(tmp_path, told):
    """A full disk, for one, may have no room for the file."""
    with Interrupts(tmp_path / "gone/stop", told) as interrupts:
        send(signal.SIGINT)
        with pytest.raises(RunInterruptedError) as raised:
            interrupts.check()
    assert raised.value.exit_code == 130
    assert told.times == 0


@pytest.mark.parametrize(
    ("signals", "exit_code"),
    [([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGINT, signal.SIGTERM], 143)],
)
def test_what_ends_a_run_is_raised_when_it_is_looked_for_and_not_in_the_middle_of_other_code(
    interrupts, signals, exit_code
):
    with interrupts:
        interrupts.check()
        send(*signals)
        for _ in range(2):
            with pytest.raises(RunInterruptedError, match="every process") as raised:
                interrupts.check()
            assert raised.value.exit_code == exit_code
            send(signal.SIGINT, signal.SIGTERM)  # cleaning up is not interrupted
