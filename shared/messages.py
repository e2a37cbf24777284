"""The wire: every message between a rollout worker and the learner, and its encoding.

A message is a list of frames: a msgpack header (one of the structs below, tagged by name) and, for `Closed` only, a
frame for each closed ticket (`shared/ticket_wire.py`). Anything unexpected is a MessageError. Nothing here is executed
or unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from shared.episodes import Evaluation, Ticket
from shared.errors import MessageError
from shared.ticket_wire import Frame
from shared.weight_wire import LiveWeights

PROTOCOL_VERSION = 6
MAX_TICKETS_PER_MESSAGE = 64
MAX_FRAMES = 1 + MAX_TICKETS_PER_MESSAGE
MAX_REASON_CHARACTERS = 2000
MAX_SPENT_S = 1e6


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


# --- greeting -------------------------------------------------------------------------------------


class Hello(_Message, frozen=True):
    """Worker → learner, first on every connection: who it is, and everything that must match on both sides.

    Fields may be added, each with a default, but neither removed nor renamed: a worker of another protocol version is
    to be told so.

    incarnation: 63 random bits, which only this worker and its learner know
    resumes: it was welcomed before, on a connection that broke, and still has what it was given and has not handed in
    """

    protocol: int
    worker: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
    incarnation: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    model: Annotated[str, msgspec.Meta(max_length=200)]
    tokenizer: Annotated[str, msgspec.Meta(max_length=200)]
    environment: Annotated[str, msgspec.Meta(max_length=200)]
    resumes: bool = False


class Welcome(_Message, frozen=True):
    """Learner → worker: this incarnation is accepted into this lineage.

    Who resumes is now told again what it may have missed: its open tickets, the calls that it has not answered, the
    last `ProbePassed`; and sends again what has not been acknowledged.
    """

    lineage: int
    incarnation: int


class Forgotten(_Message, frozen=True):
    """Learner → worker: this incarnation is not known (any more); drop all its work and say hello as a new one."""

    incarnation: int


class Refused(_Message, frozen=True):
    """Learner → worker: not accepted, or a message of it was not, and why."""

    reason: str


class Greet(_Message, frozen=True):
    """Learner → worker: nobody has said hello on this connection; do."""


class Alive(_Message, frozen=True):
    """Worker → learner, every few seconds: it is there, and its engine answered the last round trip.

    Learner → worker, when that is late: whether it can be sent shows whether there still is a connection.
    """


class Bye(_Message, frozen=True):
    """Learner → worker: no more work, leave."""


class Failed(_Message, frozen=True):
    """Worker → learner: cannot go on, and why."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)]


# --- tickets and what comes of them ---------------------------------------------------------------


class Work(_Message, frozen=True):
    """Learner → worker: tickets to start; each is credit for one closed ticket."""

    tickets: tuple[Ticket, ...]


class Closed(_Message, frozen=True):
    """Worker → learner: closed tickets, a frame each; each is taken, or refused, by itself.

    spent_s: CPU seconds that the worker has spent on writing and sending closed tickets since its last such message
    """

    spent_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_SPENT_S)] = 0.0


class Ack(_Message, frozen=True):
    """Learner → worker: the closed tickets of these sequence numbers are safe, forget them."""

    sequences: tuple[int, ...]


# --- calls: weight sync, parity probe, evaluation -------------------------------------------------


class InitTransfer(_Message, frozen=True):
    """Prepare the engine's side of the weight transport."""

    info: dict[str, Any]


class StartUpdate(_Message, frozen=True):
    """Begin a weight update."""


class UpdateWeights(_Message, frozen=True):
    """Receive weights; `info` belongs to the transport."""

    info: dict[str, Any]


class FinishUpdate(_Message, frozen=True):
    """Make the received weights live as `version`, say what is live, then score `probe` before anything else.

    No ticket closed afterwards leaves the worker before a `ProbePassed` for this version.
    """

    version: int
    probe: tuple[int, ...]


class Sleep(_Message, frozen=True):
    """Stop generating and give the machine to the learner; running requests are frozen until `Wake`.

    for_update: until a weight update instead, so that the weights need not be kept
    """

    for_update: bool = False


class Wake(_Message, frozen=True):
    """Go on generating after `Sleep`."""


class Evaluate(_Message, frozen=True):
    """Run the greedy evaluation with the weights now live, which must be `version`."""

    version: int


Request = InitTransfer | StartUpdate | UpdateWeights | FinishUpdate | Sleep | Wake | Evaluate


class Call(_Message, frozen=True):
    """Learner → worker: do this and reply under the same id."""

    id: int
    request: Request


class ProbePassed(_Message, frozen=True):
    """Learner → worker: the engine has been shown to be the learner at `version`; tickets may leave."""

    version: int


class Done(_Message, frozen=True):
    """The request succeeded and has nothing to return."""


class UpdateFinished(_Message, frozen=True):
    """FinishUpdate succeeded.

    probe_logprobs: log-probability of each probe token but the first
    pause_s: seconds from the engine's pause to its resumption
    live: all weights that the engine now computes with
    """

    probe_logprobs: tuple[float, ...]
    pause_s: float
    live: Annotated[tuple[LiveWeights, ...], msgspec.Meta(max_length=2**16)]


class Evaluated(_Message, frozen=True):
    """Evaluate succeeded."""

    evaluation: Evaluation


class CallFailed(_Message, frozen=True):
    """The request failed."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)]


Result = Done | UpdateFinished | Evaluated | CallFailed


class Reply(_Message, frozen=True):
    """Worker → learner: what came of a Call."""

    id: int
    result: Result


Message = (
    Hello
    | Welcome
    | Forgotten
    | Refused
    | Greet
    | Alive
    | Bye
    | Failed
    | Work
    | Closed
    | Ack
    | Call
    | ProbePassed
    | Reply
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> list[Frame]:
    """Frames of any message but `Closed`, which goes through `encode_closed`."""
    return [_encoder.encode(message)]


def encode_closed(tickets: Sequence[Frame], spent_s: float = 0.0) -> list[Frame]:
    """Frames of a message with closed tickets, of which there may be MAX_TICKETS_PER_MESSAGE; none is copied."""
    return [_encoder.encode(Closed(min(spent_s, MAX_SPENT_S))), *tickets]


def decode(frames: Sequence[Frame]) -> tuple[Message, Sequence[Frame]]:
    """The message and the frames of its closed tickets, which are there for `Closed` and for nothing else.

    Raises MessageError. What stands before the first colon of its message is the kind of fault, of which there are few.
    """
    if not frames:
        raise MessageError("empty message")
    try:
        message = _decoder.decode(frames[0])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"malformed header: {error}") from error
    tickets = frames[1:]
    fits = 1 <= len(tickets) <= MAX_TICKETS_PER_MESSAGE if isinstance(message, Closed) else not tickets
    if not fits:
        raise MessageError(f"{type(message).__name__} with the wrong number of frames: {len(frames)}")
    return message, tickets
