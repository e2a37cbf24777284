"""The learner's end of the stream, in a process of its own, under bad messages while good ones go on."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from bad_messages import bad_messages, spoilt_tickets
from factories import make_closed
from fake_worker import ObedientWorker

from shared import messages as msg
from shared.episodes import Ticket
from shared.ticket_wire import encode_ticket

log = logging.getLogger(__name__)

TESTS = Path(__file__).parents[1]
SOCKETS = 20
BURST = 100
WARM_UP = 20_000
MESSAGES = 100_000
PATIENCE_S = 60


class Learner:
    """The process, and what it says of itself."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/s"
        self.log = folder / "log"
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "fuzzed_learner.py"), self.endpoint, str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths, "MALLOC_ARENA_MAX": "2"},
        )

    def state(self) -> dict:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        state = json.loads(self._process.stdout.readline())
        assert state["error"] is None
        return state

    def wait_for_batches(self, count: int) -> None:
        """Until it has trained on so many more."""
        wanted = self.state()["batches"] + count
        self._wait(lambda state: state["batches"] - wanted)

    def wait_for_refusals(self, sent: int, rogue: Rogue) -> dict:
        """Until it has counted every bad message: so many `sent`, and those of the rogue.

        What the rogue has sent is asked after the learner's count: what it sends in between would otherwise be counted
        in the place of messages that are still on their way, and be taken for them.
        """
        return self._wait(lambda state: sum(state["rejected"].values()) - sent - rogue.spoilt)

    def _wait(self, surplus: Callable[[dict], int]) -> dict:
        """Until the surplus of a state isn't negative.

        Raises:
            AssertionError: it stayed the same for PATIENCE_S
        """
        last, since = None, time.monotonic()
        while (now := surplus(state := self.state())) < 0:
            if now != last:
                last, since = now, time.monotonic()
            assert time.monotonic() - since < PATIENCE_S, f"{-now} too few: {state}"
            time.sleep(0.01)
        return state

    def end(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0


class Rogue(ObedientWorker):
    """It does its work, and takes no refusal; while it is `spoiling`, it hands in every fourth batch's tickets in every
    wrong way too, before the good one, each by itself or all in one message.

    spoilt: how many wrong ones those have been
    """

    spoiling = False
    spoilt = 0

    def close_ticket(self, ticket: Ticket, **made) -> None:
        if not self.spoiling or ticket.id.batch % 4:
            super().close_ticket(ticket, **made)
            return
        closed = make_closed(ticket, **made)
        spoilt = spoilt_tickets(closed)
        self.spoilt += len(spoilt)
        good = encode_ticket(0, closed)
        # What came after a good one in the same message would be dropped as that ticket again.
        messages = [[*spoilt, good, good]] if ticket.id.batch % 8 else [*([frame] for frame in spoilt), [good]]
        for frames in messages:
            self._outbox.put(msg.encode_closed(frames))

    def _obey(self, message: msg.Message) -> None:
        if not isinstance(message, msg.Refused):
            super()._obey(message)


@pytest.fixture
def learner(tmp_path):
    learner = Learner(tmp_path)
    yield learner
    learner.end()


def pelt(learner: Learner, count: int, rng: random.Random, rogue: Rogue, sent: int) -> int:
    """So many bad messages, from the rogue and from ever new strangers, of which some never read.

    Returns how often the learner counts them, added to `sent`.
    """
    messages, from_rogue = bad_messages(rng), bad_messages(rng, to_a_known_worker=True)
    context = zmq.Context()
    left = count
    while left:
        rogue.spoiling = True
        strangers = [context.socket(zmq.DEALER) for _ in range(SOCKETS)]
        for number, stranger in enumerate(strangers):
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.connect(learner.endpoint)
            for _ in range(min(left, BURST)):
                frames, counts = next(messages)
                stranger.send_multipart(frames)
                sent, left = sent + counts, left - 1
            if number % 2:
                while stranger.poll(0):
                    stranger.recv_multipart()
        for _ in range(min(left, BURST)):
            frames, counts = next(from_rogue)
            rogue._outbox.put(frames)
            sent, left = sent + counts, left - 1
        rogue.spoiling = False
        learner.wait_for_refusals(sent, rogue)
        for stranger in strangers:
            stranger.close()
    context.term()
    return sent


def settled(learner: Learner, rogue: Rogue, sent: int) -> dict:
    """How the learner is once the tickets that were being spoilt are closed too."""
    learner.wait_for_batches(20)
    return learner.wait_for_refusals(sent, rogue)


@pytest.mark.integration
def test_bad_messages_are_all_counted_and_nothing_else_comes_of_them(learner):
    rng = random.Random(0)
    honest, rogue = ObedientWorker(learner.endpoint, "rollout-0"), Rogue(learner.endpoint, "rollout-1")
    learner.wait_for_batches(2)
    sent = warmed_up = pelt(learner, WARM_UP, rng, rogue, 0)
    before = settled(learner, rogue, sent)
    spoilt = rogue.spoilt
    began = time.monotonic()
    sent = pelt(learner, MESSAGES, rng, rogue, sent)
    took = time.monotonic() - began
    after = settled(learner, rogue, sent)
    log.info("%.0f messages/s, %d tickets spoilt\n%s\n%s", MESSAGES / took, rogue.spoilt, before, after)
    assert sum(before["rejected"].values()) == warmed_up + spoilt
    assert sum(after["rejected"].values()) == sent + rogue.spoilt
    assert after["rss"] < 1.05 * before["rss"]
    assert after["fds"] <= before["fds"]
    assert after["threads"] == before["threads"]
    assert after["workers"] == 2
    assert after["last_loss"] == ""
    assert honest.refused is None
    assert len(learner.log.read_text().splitlines()) < 1000
    assert len(after["rejected"]) < 60
    for worker in (honest, rogue):
        worker.leave()
