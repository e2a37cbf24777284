"""Messages that no learner may take, from a seed: mutations of every message there is, and noise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from factories import make_closed, make_problem, make_ticket
from msgspec.structs import replace

from shared import messages as msg
from shared.episodes import ClosedTicket, Evaluation, Role, Task, TaskAccuracy, Verdict, VersionSpan
from shared.errors import MessageError
from shared.ticket_wire import TicketFrame, encode_ticket
from shared.weight_wire import LiveWeights

Frames = list[bytes]

HUGE = [
    b"\xdd\xff\xff\xff\xff",  # an array of 4G items
    b"\xdf\xff\xff\xff\xff",  # a map
    b"\xdb\xff\xff\xff\xff",  # a string
    b"\xc6\xff\xff\xff\xff",  # bytes
    b"\xc9\xff\xff\xff\xff\x05",  # an extension
    b"\xcf" + b"\xff" * 8,
]
VALUES = [None, True, -1, 2**63, 2**64 - 1, 1e308, float("nan"), "", "x" * 5000, b"\xff", [], {}, [[]] * 100, {"a": 1}]


def valid_messages() -> list[Frames]:
    """One of every type of message, of request and of result, and closed tickets that were never issued."""
    ticket = make_ticket()
    requests = [
        msg.InitTransfer({"a": [1, 2]}),
        msg.StartUpdate(),
        msg.UpdateWeights({"b": {"c": 1.5}}),
        msg.FinishUpdate(1, (1, 2)),
        msg.Sleep(),
        msg.Wake(),
        msg.Evaluate(1),
    ]
    evaluation = Evaluation(1, {task: TaskAccuracy(10, 0.5, 0.0, 4.0) for task in Task})
    results = [
        msg.Done(),
        msg.UpdateFinished((-1.0,), 0.1, (LiveWeights(("a", "b"), ((1, 2), None)),)),
        msg.Evaluated(evaluation),
        msg.CallFailed("no"),
    ]
    plain = [
        msg.Hello(msg.PROTOCOL_VERSION, "rollout-9", 5, "m", "t", "e"),
        msg.Welcome(1, 2),
        msg.Forgotten(2),
        msg.Refused("no"),
        msg.Greet(),
        msg.Alive(),
        msg.Bye(),
        msg.Failed("the engine is dead"),
        msg.Work((ticket, make_ticket("buffer"))),
        msg.Ack((3, 4)),
        msg.ProbePassed(1),
        *(msg.Call(1, request) for request in requests),
        *(msg.Reply(1, result) for result in results),
    ]
    closed = [
        make_closed(ticket),
        make_closed(ticket, proposed=make_problem("new")),
        make_closed(make_ticket("buffer")),
    ]
    return [
        *([bytes(frame) for frame in msg.encode(message)] for message in plain),
        *(msg.encode_closed([encode_ticket(0, each)]) for each in closed for _ in range(3)),
    ]


def _in_a_header(mutate: Callable[[bytes, random.Random], bytes]) -> Callable[[Frames, random.Random], Frames]:
    """The header of the message, or of one of its tickets, with another content."""

    def mutated(frames: Frames, rng: random.Random) -> Frames:
        which = rng.randrange(len(frames))
        if which == 0:
            return [mutate(frames[0], rng), *frames[1:]]
        frame = frames[which]
        length = int.from_bytes(frame[:4], "little")
        header, arrays = frame[4 : 4 + length], frame[4 + length + -length % 4 :]
        header = mutate(header, rng)
        frame = len(header).to_bytes(4, "little") + header + bytes(-len(header) % 4) + arrays
        return [*frames[:which], frame, *frames[which + 1 :]]

    return mutated


def _flip(header: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(header)
    for _ in range(rng.randint(1, 6)):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    return bytes(flipped)


def _cut(frames: Frames, rng: random.Random) -> Frames:
    which = rng.randrange(len(frames))
    return [f[: rng.randrange(len(f))] if i == which and f else f for i, f in enumerate(frames)]


def _extend(frames: Frames, rng: random.Random) -> Frames:
    which = rng.randrange(len(frames))
    return [f + rng.randbytes(rng.randint(1, 64)) if i == which else f for i, f in enumerate(frames)]


def _other_frames(frames: Frames, rng: random.Random) -> Frames:
    return rng.choice([frames[:1], frames[1:] or [b""], frames * 2, [*frames, b""], frames[::-1], [b"", *frames]])


def _huge(header: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(header) + 1)
    return header[:at] + rng.choice(HUGE) + header[at:]


def _deep(header: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(header) + 1)
    return header[:at] + rng.choice([b"\x91", b"\x81\xa1a"]) * rng.choice([50, 5000])


def _not_text(header: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(header))
    return header[:at] + rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80"]) + header[at + 1 :]


def _edit(header: bytes, rng: random.Random) -> bytes:
    """Another value, a field too many or too few, somewhere in the header."""
    tree = msgspec.msgpack.decode(header)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and rng.random() < 0.7:
            node = node[key]
            continue
        node[key] = rng.choice(VALUES)
        break
    if isinstance(node, dict) and rng.random() < 0.3:
        node["surprise\n" * rng.choice([1, 500])] = 1
    if isinstance(node, list) and rng.random() < 0.3:
        node.append(rng.choice(VALUES))
    return msgspec.msgpack.encode(tree)


def _wrong_lineage(header: bytes, rng: random.Random) -> bytes:
    tree = msgspec.msgpack.decode(header)
    if isinstance(tree, list):
        tree[1] = [rng.choice([-1, 0, 1, 10**9, 2**62]), rng.choice([-1, 0, 10**6]), rng.choice([-1, 0, 10**6])]
    return msgspec.msgpack.encode(tree)


def _many(frames: Frames, rng: random.Random) -> Frames:
    """The same ticket several times, or more often than a message may have tickets."""
    return [frames[0], *frames[1:] * rng.choice([2, 5, 65, 300])]


def _noise(_: Frames, rng: random.Random) -> Frames:
    return [rng.randbytes(rng.randrange(200)) for _ in range(rng.randint(1, 6))]


def _empty(_: Frames, rng: random.Random) -> Frames:
    return [b""] * rng.choice([1, 2, 4, 5, 300])


MUTATIONS: list[Callable[[Frames, random.Random], Frames]] = [
    lambda frames, rng: frames,
    _cut,
    _extend,
    _other_frames,
    _many,
    *map(_in_a_header, (_flip, _huge, _deep, _not_text, _edit, _wrong_lineage)),
    _noise,
    _empty,
]


def bad_messages(rng: random.Random, *, to_a_known_worker: bool = False) -> Iterator[tuple[Frames, int]]:
    """Endlessly many, and how often a learner counts each: once, or once for each closed ticket.

    From a stranger that is anything but a greeting that matches. From a worker that the learner knows (lineage 3), what
    does not decode, what only a learner may say, greetings that do not match, and tickets and replies of nowhere.
    """
    valid = valid_messages()
    tickets = [frames for frames in valid if len(frames) > 1]
    counts = _counts_from_a_worker if to_a_known_worker else _counts_from_a_stranger
    while True:
        either = tickets if to_a_known_worker and rng.random() < 0.5 else valid
        frames = rng.choice(MUTATIONS)(rng.choice(either), rng)
        if number := counts(frames):
            yield frames, number


def spoilt_tickets(closed: ClosedTicket) -> list[bytes]:
    """Frames of what a worker may not make of a ticket that it was given, in every way that there is a check for."""

    def attempt(**changes: object) -> ClosedTicket:
        return replace(closed, attempts=(replace(closed.attempts[0], **changes), *closed.attempts[1:]))

    one = np.ones(1, dtype=np.int32)
    spoilt = [
        replace(closed, attempts=closed.attempts[1:]),
        replace(closed, attempts=closed.attempts * 20),
        replace(closed, solve_rate=0.0),
        replace(closed, solve_rate=1.0),
        replace(closed, proposed=closed.problem),
        replace(closed, problem=make_problem("another", closed.problem.task)),
        attempt(role=Role.PROPOSER),
        attempt(verdict=Verdict.VALID),
        attempt(reward=1e300),
        attempt(reward=float("nan")),
        attempt(response_ids=-one.repeat(2)),
        attempt(response_ids=1000 * one.repeat(2)),
        attempt(prompt_ids=one.repeat(11)),
        attempt(behaviour_logprobs=np.full(2, np.nan, dtype=np.float32)),
        attempt(behaviour_logprobs=np.zeros(3, dtype=np.float32)),
        attempt(spans=()),
        attempt(spans=(VersionSpan(2**40, 0, 2),)),
        attempt(spans=(VersionSpan(-1, 0, 2),)),
        attempt(spans=(VersionSpan(0, 0, 2**62), VersionSpan(0, 2**62, 2))),
    ]
    good = encode_ticket(0, closed)
    torn = [good[:-3], good[:-4], good + bytes(4), good[:9], good[4:], b""]
    return [*(encode_ticket(0, each) for each in spoilt), *torn]


def _counts_from_a_stranger(frames: Frames) -> int:
    try:
        message, _ = msg.decode(frames)
    except MessageError:
        return 1
    return not isinstance(message, msg.Hello) or not _matches(message)


def _counts_from_a_worker(frames: Frames) -> int:
    try:
        message, tickets = msg.decode(frames)
    except MessageError:
        return 1
    match message:
        case msg.Alive() | msg.Failed():
            return 0
        case msg.Hello():
            return not _matches(message)
        case msg.Closed():
            return len(tickets) if all(map(_is_bad, tickets)) else 0
    return 1


def _is_bad(ticket: bytes) -> bool:
    """Whatever is not of lineage 3 is."""
    try:
        return TicketFrame.read(ticket).header.id.lineage != 3
    except MessageError:
        return True


def _matches(hello: msg.Hello) -> bool:
    return (hello.protocol, hello.model, hello.tokenizer, hello.environment) == (msg.PROTOCOL_VERSION, "m", "t", "e")
