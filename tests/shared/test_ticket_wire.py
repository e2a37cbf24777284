"""Closed tickets on the wire: what is written is read again, without a copy; what does not fit together is refused."""

import contextlib

import msgspec
import numpy as np
import pytest
from factories import make_episode, make_problem
from hypothesis import given
from hypothesis import strategies as st

from shared.episodes import ClosedTicket, Episode, Problem, Role, Task, TicketId, Verdict
from shared.episodes import VersionSpan as Span
from shared.errors import MessageError
from shared.ticket_wire import TicketFrame, encode_ticket

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
    written = TicketFrame.read(encode_ticket(7, ticket))
    assert (written.header.sequence, written.header.id) == (7, ticket.id)
    return written.closed(2**31)


@given(closed_tickets())
def test_closed_ticket_survives_the_wire(ticket):
    back = round_trip(ticket)
    for name in ("id", "problem", "proposed", "solve_rate", "untrained_episodes", "untrained_tokens"):
        assert getattr(back, name) == getattr(ticket, name)
    assert (back.proposal is None) == (ticket.proposal is None)
    assert len(back.episodes) == len(ticket.episodes)
    assert all(same(a, b) for a, b in zip(back.episodes, ticket.episodes, strict=True))


FIELDS = (
    *("sequence", "id", "proposed", "problem", "solve_rate", "prompt_tokens", "proposal", "attempts"),
    *("untrained_episodes", "untrained_tokens"),
)


def frame_of(ticket: ClosedTicket) -> bytes:
    return encode_ticket(0, ticket)


def parts(frame: bytes) -> tuple[dict, bytes]:
    """The header's fields, and the arrays."""
    length = int.from_bytes(frame[:4], "little")
    fields = msgspec.msgpack.decode(frame[4 : 4 + length])
    return dict(zip(FIELDS, fields, strict=True)), frame[4 + length + -length % 4 :]


def framed(header: list, arrays: bytes) -> bytes:
    head = msgspec.msgpack.encode(header)
    return len(head).to_bytes(4, "little") + head + bytes(-len(head) % 4) + arrays


def edited(frame: bytes, **changes: object) -> bytes:
    header, arrays = parts(frame)
    return framed(list((header | changes).values()), arrays)


def read(frame: bytes) -> ClosedTicket:
    return TicketFrame.read(frame).closed(2**31)


@given(ticket=closed_tickets(), by=st.integers(1, 40))
def test_frames_that_are_cut_short_or_too_long_are_refused(ticket, by):
    frame = frame_of(ticket)
    for wrong in (frame[:-by], frame + bytes(by), frame[: by - 1]):
        with pytest.raises(MessageError):
            read(wrong)


@given(closed_tickets(), st.integers(0, 7))
def test_arrays_are_views_of_the_frame_wherever_it_begins(ticket, offset):
    memory = bytes(offset) + frame_of(ticket)
    closed = read(memoryview(memory)[offset:])
    whole = np.frombuffer(memory, np.uint8)
    for a, b in zip(closed.episodes, ticket.episodes, strict=True):
        assert same(a, b)
        for array in (a.prompt_ids, a.response_ids, a.behaviour_logprobs):
            assert np.shares_memory(array, whole)
            assert not array.flags.writeable


def test_attempts_that_share_a_prompt_send_it_once():
    prompt = list(range(1000))
    alike = tuple(make_episode(prompt=prompt) for _ in range(8))
    ticket = ClosedTicket(TicketId(0, 0, 0), make_episode(Role.PROPOSER), None, make_problem("k"), alike, 1.0)
    header, arrays = parts(frame_of(ticket))
    assert header["prompt_tokens"] == [3, 1000]
    assert len(arrays) == 4 * (3 + 1000 + 2 * 9 * 2)


def plain_ticket() -> ClosedTicket:
    return ClosedTicket(TicketId(0, 0, 0), None, None, make_problem("k"), (make_episode(),) * 2, solve_rate=1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": [2**40]},
        {"prompt_tokens": [-3]},
        {"prompt_tokens": []},
        {"attempts": []},
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
        read(edited(frame_of(plain_ticket()), **changes))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (2, 5),  # prompt index
        (3, 2**31),  # response tokens
        (3, 0),
        (4, [[0, 0, 1, False]]),  # spans that stop short
        (4, [[0, 1, 2, False]]),  # spans that start late
        (4, [[0, 0, 2, False], [0, 1, 2, False]]),  # that overlap
        (4, [[0, 0, 1, False], [0, 1, 1, False], [0, 1, 2, False]]),  # an empty one
        (4, []),
        (7, float("nan")),  # reward
    ],
)
def test_impossible_episodes_are_refused(position, value):
    frame = frame_of(plain_ticket())
    attempts = parts(frame)[0]["attempts"]
    attempts[0][position] = value
    with pytest.raises(MessageError):
        read(edited(frame, attempts=attempts))


def test_a_field_too_many_or_too_few_is_refused():
    header, arrays = parts(frame_of(plain_ticket()))
    fields = list(header.values())
    for wrong in ([*fields, 1], fields[:-1], []):
        with pytest.raises(MessageError, match="malformed closed ticket"):
            read(framed(wrong, arrays))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_log_probabilities_that_are_no_numbers_are_refused(bad):
    frame = frame_of(plain_ticket())
    with pytest.raises(MessageError, match="not finite"):
        read(frame[:-8] + np.full(2, bad, dtype="<f4").tobytes())


def test_a_token_id_that_is_negative_or_outside_the_vocabulary_is_refused():
    frame = frame_of(plain_ticket())  # of ids up to 5
    assert TicketFrame.read(frame).closed(6)
    with pytest.raises(MessageError, match="vocabulary"):
        TicketFrame.read(frame).closed(5)
    header, arrays = parts(frame)
    for at in range(0, 4 * (3 + 2 * 2), 4):
        with pytest.raises(MessageError, match="vocabulary"):
            read(framed(list(header.values()), arrays[:at] + b"\xff" * 4 + arrays[at + 4 :]))


@pytest.mark.parametrize("length", [2**31, 2**32 - 1, 30])
def test_a_header_longer_than_the_frame_is_refused(length):
    with pytest.raises(MessageError, match="cut short: 24 bytes"):
        read(length.to_bytes(4, "little") + bytes(20))


@given(st.binary(max_size=200), st.booleans())
def test_random_frames_raise_nothing_but_message_errors(frame, honest_length):
    if honest_length:
        frame = len(frame).to_bytes(4, "little") + frame
    with contextlib.suppress(MessageError):
        read(frame)
