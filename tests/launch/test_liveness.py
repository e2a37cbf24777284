"""Processes that live and do not work, on a clock that the test moves."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.liveness import LONGEST_LOOK_S, Liveness
from launch.processes import within
from shared.errors import PrimezeroError

LIMIT_S = 60.0


class Watched:
    def __init__(self) -> None:
        self.now = 0.0
        self.liveness = Liveness(LIMIT_S, lambda: self.now)
        self.beats = {"a": -1, "b": -1}

    def look(self, seconds: float, *beating: str) -> list[str]:
        """The first that are found to hang, looking every half second."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            self.beats = {name: count + (name in beating) for name, count in self.beats.items()}
            if hanging := self.liveness.hanging(self.beats):
                return hanging
        return []


def test_who_gives_no_sign_of_life_for_the_limit_hangs_and_nobody_else():
    watched = Watched()
    assert watched.look(100, "a", "b") == []
    stopped = watched.now
    assert watched.look(100, "b") == ["a"]
    assert watched.now - stopped == pytest.approx(LIMIT_S)


def test_one_that_never_gave_any_hangs_too():
    watched = Watched()
    assert watched.look(100, "a") == ["b"]
    assert watched.now == pytest.approx(LIMIT_S + 0.5)


@given(standstill=st.floats(LONGEST_LOOK_S, 1e6), before=st.floats(0.5, LIMIT_S - LONGEST_LOOK_S - 1))
def test_a_standstill_of_the_launcher_itself_is_nobodys_silence(standstill, before):
    watched = Watched()
    assert watched.look(10, "a", "b") == []
    assert watched.look(before) == []
    watched.now += standstill
    assert watched.liveness.hanging(watched.beats) == []
    assert watched.look(1, "a", "b") == []
    assert watched.look(LIMIT_S - 1) == []


def test_what_bears_the_name_of_one_that_was_ended_begins_anew():
    watched = Watched()
    assert watched.look(LIMIT_S - 1, "b") == []
    watched.liveness.forget(["a"])
    assert watched.look(LIMIT_S - 1, "b") == []
    assert watched.look(2, "b") == ["a"]
    del watched.beats["a"]
    assert watched.look(LIMIT_S * 2, "b") == []


def test_a_call_that_never_returns_is_an_error_that_says_so_and_one_that_raises_raises():
    may_end = threading.Event()
    with pytest.raises(PrimezeroError, match=r"ending rollout-0: Ray did not answer within 0\.1 s"):
        within(0.1, "ending rollout-0", may_end.wait)
    may_end.set()
    with pytest.raises(ZeroDivisionError):
        within(60, "dividing", lambda: 1 / 0)
    done = []
    within(60, "appending", lambda: done.append(1))
    assert done == [1]
