"""The wire: every message between a rollout worker and the learner, and its encoding.

A message is a list of frames: a msgpack header (one of the structs below, tagged by name) and, for
`Closed` only, three raw little-endian buffers. Decoding checks types, counts and sizes before any
array is made; anything unexpected is a MessageError. Nothing here is executed or unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any

import msgspec
import numpy as np

from shared.episodes import (
    ClosedTicket,
    Episode,
    Evaluation,
    Problem,
    Role,
    Task,
    Ticket,
    TicketId,
    Verdict,
    VersionSpan,
)
from shared.errors import MessageError

PROTOCOL_VERSION = 4
MAX_EPISODES_PER_TICKET = 4096
MAX_TOKENS_PER_TICKET = 2**27
MAX_FRAMES = 4
MAX_REASON_CHARACTERS = 2000

Frame = bytes | memoryview


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


class EpisodeHeader(msgspec.Struct, frozen=True, array_like=True):
    """An Episode without its arrays. prompt: index into the ticket's distinct prompts."""

    role: Role
    task: Task
    prompt: int
    response_tokens: int
    spans: tuple[VersionSpan, ...]
    truncated: bool
    verdict: Verdict
    reward: float


class Closed(_Message, frozen=True):
    """Worker → learner: a closed ticket. Buffers: prompt ids, response ids (int32), log-probabilities (float32).

    sequence: numbers the closed tickets of one worker incarnation, from 0
    prompt_tokens: length of each distinct prompt, in the order of the first buffer
    """

    sequence: int
    id: TicketId
    proposed: Problem | None
    problem: Problem
    solve_rate: float
    prompt_tokens: tuple[int, ...]
    proposal: EpisodeHeader | None
    attempts: tuple[EpisodeHeader, ...]
    untrained_episodes: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPISODES_PER_TICKET)] = 0
    untrained_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS_PER_TICKET)] = 0


class Ack(_Message, frozen=True):
    """Learner → worker: the closed ticket of this sequence number is safe, forget it."""

    sequence: int


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
    """Make the received weights live as `version`, then score `probe` before anything else.

    No ticket closed afterwards leaves the worker before a `ProbePassed` for this version.
    """

    version: int
    probe: tuple[int, ...]


class Sleep(_Message, frozen=True):
    """Stop generating and give the machine to the learner; running requests are frozen until `Wake`."""


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
    """

    probe_logprobs: tuple[float, ...]
    pause_s: float


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
    """Frames of a message without buffers; a closed ticket goes through `encode_closed`."""
    return [_encoder.encode(message)]


def encode_closed(sequence: int, ticket: ClosedTicket) -> list[Frame]:
    """Frames of a closed ticket; the array buffers are copied once, into three frames."""
    prompts: dict[bytes, int] = {}

    def header(episode: Episode) -> EpisodeHeader:
        prompt = prompts.setdefault(episode.prompt_ids.tobytes(), len(prompts))
        return EpisodeHeader(
            episode.role,
            episode.task,
            prompt,
            len(episode.response_ids),
            episode.spans,
            episode.truncated,
            episode.verdict,
            episode.reward,
        )

    proposal = None if ticket.proposal is None else header(ticket.proposal)
    attempts = tuple(header(attempt) for attempt in ticket.attempts)
    closed = Closed(
        sequence=sequence,
        id=ticket.id,
        proposed=ticket.proposed,
        problem=ticket.problem,
        solve_rate=ticket.solve_rate,
        prompt_tokens=tuple(len(prompt) // 4 for prompt in prompts),
        proposal=proposal,
        attempts=attempts,
        untrained_episodes=ticket.untrained_episodes,
        untrained_tokens=ticket.untrained_tokens,
    )
    responses = np.concatenate([e.response_ids for e in ticket.episodes]).astype("<i4", copy=False)
    logprobs = np.concatenate([e.behaviour_logprobs for e in ticket.episodes]).astype("<f4", copy=False)
    return [_encoder.encode(closed), b"".join(prompts), responses.data.cast("B"), logprobs.data.cast("B")]


def decode(frames: Sequence[Frame]) -> tuple[Message, Sequence[Frame]]:
    """The message and its buffers, which are there for `Closed` and for nothing else.

    Raises MessageError. What stands before the first colon of its message is the kind of fault, of which there are few.
    """
    if not frames:
        raise MessageError("empty message")
    try:
        message = _decoder.decode(frames[0])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"malformed header: {error}") from error
    buffers = frames[1:]
    if len(buffers) != (3 if isinstance(message, Closed) else 0):
        raise MessageError(f"{type(message).__name__} with the wrong number of buffers: {len(buffers)}")
    return message, buffers


def decode_closed(closed: Closed, buffers: Sequence[Frame]) -> ClosedTicket:
    """The closed ticket; its arrays are read-only views of the buffers.

    Raises MessageError when counts, sizes, spans or values do not fit together.
    """
    headers = [h for h in (closed.proposal, *closed.attempts) if h is not None]
    if not closed.attempts:
        raise MessageError("a closed ticket without attempts")
    if not 0 <= closed.solve_rate <= 1:
        raise MessageError(f"an impossible solve rate: {closed.solve_rate}")
    if len(headers) > MAX_EPISODES_PER_TICKET:
        raise MessageError(f"too many episodes in one ticket: {len(headers)}")
    prompts = list(_split(buffers[0], "<i4", closed.prompt_tokens, "prompt ids"))
    lengths = [h.response_tokens for h in headers]
    responses = _split(buffers[1], "<i4", lengths, "response ids")
    logprobs = _split(buffers[2], "<f4", lengths, "log-probabilities")
    episodes = [
        _episode(header, prompts, ids, logps) for header, ids, logps in zip(headers, responses, logprobs, strict=True)
    ]
    return ClosedTicket(
        id=closed.id,
        proposal=None if closed.proposal is None else episodes[0],
        proposed=closed.proposed,
        problem=closed.problem,
        attempts=tuple(episodes[closed.proposal is not None :]),
        solve_rate=closed.solve_rate,
        untrained_episodes=closed.untrained_episodes,
        untrained_tokens=closed.untrained_tokens,
    )


def _split(buffer: Frame, dtype: str, lengths: Sequence[int], what: str) -> Iterator[np.ndarray[Any, Any]]:
    if min(lengths, default=0) < 1 or sum(lengths) > MAX_TOKENS_PER_TICKET:
        raise MessageError(f"buffers of impossible lengths: {what}")
    if memoryview(buffer).nbytes != 4 * sum(lengths):
        raise MessageError(
            "a buffer of another size than announced: "
            f"{what}, {memoryview(buffer).nbytes} bytes for {sum(lengths)} values"
        )
    values = np.frombuffer(buffer, dtype=dtype)
    if dtype == "<i4" and values.min() < 0:
        raise MessageError(f"a negative token id: {what}")
    if dtype == "<f4" and not np.isfinite(values).all():
        raise MessageError(f"not finite: {what}")
    return (values[start:end] for start, end in pairwise(accumulate(lengths, initial=0)))


def _episode(
    header: EpisodeHeader,
    prompts: Sequence[np.ndarray[Any, Any]],
    ids: np.ndarray[Any, Any],
    logps: np.ndarray[Any, Any],
) -> Episode:
    if not 0 <= header.prompt < len(prompts):
        raise MessageError("an episode's prompt is missing")
    edges = [0, *(span.end for span in header.spans)]
    if edges[-1] != len(ids) or any(
        span.start != edge or span.end <= span.start for span, edge in zip(header.spans, edges, strict=False)
    ):
        raise MessageError("version spans do not cover the response")
    if not np.isfinite(header.reward):
        raise MessageError("a reward is not finite")
    return Episode(
        role=header.role,
        task=header.task,
        prompt_ids=prompts[header.prompt],
        response_ids=ids,
        behaviour_logprobs=logps,
        spans=header.spans,
        truncated=header.truncated,
        verdict=header.verdict,
        reward=header.reward,
    )
