import msgspec
import numpy as np
import pytest
from factories import make_episode, make_problem
from hypothesis import given
from hypothesis import strategies as st

from shared import messages as msg
from shared.episodes import ClosedTicket, Episode, Evaluation, Problem, Role, Task, TaskAccuracy, TicketId, Verdict
from shared.episodes import VersionSpan as Span
from shared.errors import MessageError

token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)


@st.composite
def episodes(draw, role=Role.SOLVER, prompt=None):
    response = draw(token_ids)
    cut = draw(st.integers(0, len(response)))
    version = draw(st.integers(0, 2**40))
    spans = [Span(version, 0, cut), Span(version + 1, cut, len(response), mixed_kv=draw(st.booleans()))]
    logprobs = draw(st.lists(st.floats(-50, 0, width=32), min_size=len(response), max_size=len(response)))
    return Episode(
        role=role,
        task=draw(st.sampled_from(list(Task))),
        prompt_ids=np.array(prompt or draw(token_ids), dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
        behaviour_logprobs=np.array(logprobs, dtype=np.float32),
        spans=tuple(s for s in spans if s.end > s.start),
        truncated=draw(st.booleans()),
        verdict=draw(st.sampled_from(list(Verdict))),
        reward=draw(st.floats(-2, 2)),
    )


@st.composite
def closed_tickets(draw):
    problem = Problem(Task.DEDUCTION, *(draw(st.text(max_size=20)) for _ in range(4)))
    return ClosedTicket(
        id=TicketId(0, draw(st.integers(0, 10)), draw(st.integers(0, 10))),
        proposal=draw(st.none() | episodes(role=Role.PROPOSER)),
        proposed=draw(st.none() | st.just(problem)),
        problem=problem,
        attempts=tuple(draw(st.lists(episodes(prompt=draw(token_ids)), min_size=1, max_size=4))),
        solve_rate=draw(st.floats(0, 1)),
        untrained_episodes=draw(st.integers(0, 4096)),
        untrained_tokens=draw(st.integers(0, 2**27)),
    )


def same(a: Episode, b: Episode) -> bool:
    arrays = ("prompt_ids", "response_ids", "behaviour_logprobs")
    plain = ("role", "task", "spans", "truncated", "verdict", "reward")
    return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in arrays) and all(
        getattr(a, k) == getattr(b, k) for k in plain
    )


def round_trip(ticket: ClosedTicket) -> ClosedTicket:
    closed, buffers = msg.decode([bytes(frame) for frame in msg.encode_closed(7, ticket)])
    assert isinstance(closed, msg.Closed)
    assert closed.sequence == 7
    return msg.decode_closed(closed, buffers)


@given(closed_tickets())
def test_closed_ticket_survives_the_wire(ticket):
    back = round_trip(ticket)
    for name in ("id", "problem", "proposed", "solve_rate", "untrained_episodes", "untrained_tokens"):
        assert getattr(back, name) == getattr(ticket, name)
    assert (back.proposal is None) == (ticket.proposal is None)
    assert len(back.episodes) == len(ticket.episodes)
    assert all(same(a, b) for a, b in zip(back.episodes, ticket.episodes, strict=True))


@pytest.mark.parametrize(
    "message",
    [
        msg.Hello(1, "rollout-0", 2**62, "m", "t", "e"),
        msg.Call(3, msg.UpdateWeights({"path": "x", "parameters": [["a", [1, 2], 0]]})),
        msg.Call(4, msg.FinishUpdate(2, (1, 2, 3))),
        msg.Reply(3, msg.UpdateFinished((-1.5, -2.0), 0.01)),
        msg.Reply(4, msg.Evaluated(Evaluation(2, {Task.DEDUCTION: TaskAccuracy(35, 0.5, 0.0, 5.0)}))),
        msg.Ack(9),
        msg.Bye(),
    ],
)
def test_plain_messages_survive_the_wire(message):
    assert msg.decode(msg.encode(message)) == (message, [])


def frames_of(ticket: ClosedTicket) -> list[bytes]:
    return [bytes(frame) for frame in msg.encode_closed(0, ticket)]


def edited(frames: list[bytes], **changes: object) -> list[bytes]:
    header = msgspec.msgpack.decode(frames[0]) | changes
    return [msgspec.msgpack.encode(header), *frames[1:]]


@given(ticket=closed_tickets(), cut=st.integers(1, 3), by=st.sampled_from([1, 4]))
def test_short_buffers_are_refused(ticket, cut, by):
    frames = frames_of(ticket)
    frames[cut] = frames[cut][:-by]
    with pytest.raises(MessageError):
        msg.decode_closed(*msg.decode(frames))


def plain_ticket() -> ClosedTicket:
    return ClosedTicket(TicketId(0, 0, 0), None, None, make_problem("k"), (make_episode(),) * 2, solve_rate=1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": [2**40]},
        {"prompt_tokens": [-3]},
        {"prompt_tokens": []},
        {"attempts": []},
        {"surprise": 1},
        {"sequence": "0"},
        {"id": [0, 0]},
        {"problem": ["multiplication", "c", "k", "f", "a"]},
        {"problem": ["deduction", "c", "k"]},
        {"solve_rate": 1.5},
        {"solve_rate": -0.1},
        {"solve_rate": float("nan")},
        {"solve_rate": None},
    ],
)
def test_impossible_headers_are_refused(changes):
    with pytest.raises(MessageError):
        msg.decode_closed(*msg.decode(edited(frames_of(plain_ticket()), **changes)))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (2, 5),  # prompt index
        (3, 2**31),  # response tokens
        (3, 0),
        (4, [[0, 0, 1, False]]),  # spans that stop short
        (4, [[0, 1, 2, False]]),  # spans that start late
        (4, []),
        (7, float("nan")),  # reward
    ],
)
def test_impossible_episodes_are_refused(position, value):
    frames = frames_of(plain_ticket())
    attempts = msgspec.msgpack.decode(frames[0])["attempts"]
    attempts[0][position] = value
    with pytest.raises(MessageError):
        msg.decode_closed(*msg.decode(edited(frames, attempts=attempts)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_log_probabilities_that_are_no_numbers_are_refused(bad):
    frames = frames_of(plain_ticket())
    frames[3] = np.full(4, bad, dtype="<f4").tobytes()
    with pytest.raises(MessageError, match="not finite"):
        msg.decode_closed(*msg.decode(frames))


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_random_frames_raise_nothing_but_message_errors(frames):
    try:
        message, buffers = msg.decode(frames)
        if isinstance(message, msg.Closed):
            msg.decode_closed(message, buffers)
    except MessageError:
        pass


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
    with pytest.raises(MessageError, match="Bye with the wrong number of buffers: 1"):
        msg.decode([*msg.encode(msg.Bye()), b"more"])
