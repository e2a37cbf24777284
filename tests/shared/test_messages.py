import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import messages as msg
from shared.episodes import Evaluation, Task, TaskAccuracy
from shared.errors import MessageError
from shared.weight_wire import LiveWeights


@pytest.mark.parametrize(
    "message",
    [
        msg.Hello(1, "rollout-0", 2**62, "m", "t", "e"),
        msg.Call(3, msg.UpdateWeights({"path": "x", "parameters": [["a", [1, 2], 0]]})),
        msg.Call(4, msg.FinishUpdate(2, (1, 2, 3))),
        msg.Reply(3, msg.UpdateFinished((-1.5, -2.0), 0.01, (LiveWeights(("a", "b"), ((1, -2), None)),))),
        msg.Reply(4, msg.Evaluated(Evaluation(2, {Task.DEDUCTION: TaskAccuracy(35, 0.5, 0.0, 5.0)}))),
        msg.Ack((9, 10)),
        msg.Bye(),
    ],
)
def test_plain_messages_survive_the_wire(message):
    assert msg.decode(msg.encode(message)) == (message, [])


def test_tickets_come_as_they_were_sent():
    tickets = [b"one", b"two"]
    frames = msg.encode_closed(tickets, 0.25)
    assert all(a is b for a, b in zip(frames[1:], tickets, strict=True))
    assert msg.decode(frames) == (msg.Closed(0.25), tickets)


@pytest.mark.parametrize("count", [0, 65, 300])
def test_a_message_has_one_ticket_at_least_and_64_at_most(count):
    with pytest.raises(MessageError, match=f"Closed with the wrong number of frames: {count + 1}"):
        msg.decode(msg.encode_closed([b""] * count))


@pytest.mark.parametrize("spent_s", [-1.0, 1e300, float("nan"), float("inf")])
def test_an_impossible_time_is_refused(spent_s):
    with pytest.raises(MessageError, match="malformed header"):
        msg.decode([msg._encoder.encode(msg.Closed(spent_s)), b""])


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_random_frames_raise_nothing_but_message_errors(frames):
    with contextlib.suppress(MessageError):
        msg.decode(frames)


@pytest.mark.parametrize(
    "header",
    [
        b"\x82\xa4type\xa6Failed\xa6reason\xa2\xff\xff",  # a string that is not UTF-8
        b"\x81\xa4type\xa2\xff\xff",
        b"\x82\xa4type\xa6Failed\xa6reason" + b"\x91" * 100_000,  # nested too deep
        b"\x83\xa4type\xa4Call\xa2id\x00\xa7request\x82\xa4type\xacInitTransfer\xa4info\x81\xa1a" + b"\x91" * 100_000,
        b"\x82\xa4type\xa6Failed\xa6reason\xdb\xff\xff\xff\xff",  # a string of 4 GiB that is not there
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_headers_that_break_decoders_are_message_errors(header):
    with pytest.raises(MessageError):
        msg.decode([header])


def test_buffers_on_other_messages_are_refused():
    with pytest.raises(MessageError, match="Bye with the wrong number of frames: 2"):
        msg.decode([*msg.encode(msg.Bye()), b"more"])
