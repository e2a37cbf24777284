"""A closed ticket as one frame of a message, which is also what the journal keeps of it.

All little-endian: the header's length (uint32), the header (msgpack), zeros up to a multiple of 4, then the arrays,
raw: the distinct prompts' ids and the responses' ids (int32), the responses' log-probabilities (float32). Counts, sizes
and values are checked before an array is made of them, and arrays are views of the frame; anything unexpected is a
MessageError.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any

import msgspec
import numpy as np

from shared.episodes import ClosedTicket, Episode, Problem, Role, Task, TicketId, Verdict, VersionSpan
from shared.errors import MessageError
from shared.limits import MAX_EPISODES_PER_TICKET, MAX_TOKENS_PER_TICKET

Frame = bytes | memoryview

_LENGTH_BYTES = 4
_Length = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS_PER_TICKET)]
_Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


class EpisodeHeader(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An Episode without its arrays. prompt: index into the ticket's distinct prompts."""

    role: Role
    task: Task
    prompt: Annotated[int, msgspec.Meta(ge=0)]
    response_tokens: _Length
    spans: tuple[VersionSpan, ...]
    truncated: bool
    verdict: Verdict
    reward: _Finite


class TicketHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A ClosedTicket without its arrays.

    sequence: numbers the closed tickets of one worker incarnation, from 0
    prompt_tokens: length of each distinct prompt, in the order of the ids
    """

    sequence: int
    id: TicketId
    proposed: Problem | None
    problem: Problem
    solve_rate: Annotated[float, msgspec.Meta(ge=0, le=1)]
    prompt_tokens: tuple[_Length, ...]
    proposal: EpisodeHeader | None
    attempts: Annotated[tuple[EpisodeHeader, ...], msgspec.Meta(min_length=1, max_length=MAX_EPISODES_PER_TICKET)]
    untrained_episodes: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPISODES_PER_TICKET)]
    untrained_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS_PER_TICKET)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TicketHeader)


def encode_ticket(sequence: int, ticket: ClosedTicket) -> bytes:
    """The frame of a closed ticket; its arrays are copied once."""
    prompts: dict[bytes, int] = {}
    seen: dict[int, int] = {}

    def header(episode: Episode) -> EpisodeHeader:
        prompt = seen.get(id(episode.prompt_ids))
        if prompt is None:
            prompt = prompts.setdefault(np.asarray(episode.prompt_ids, "<i4").tobytes(), len(prompts))
            seen[id(episode.prompt_ids)] = prompt
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
    attempts = tuple(map(header, ticket.attempts))
    head = _encoder.encode(
        TicketHeader(
            sequence,
            ticket.id,
            ticket.proposed,
            ticket.problem,
            ticket.solve_rate,
            tuple([len(prompt) // 4 for prompt in prompts]),
            proposal,
            attempts,
            ticket.untrained_episodes,
            ticket.untrained_tokens,
        )
    )
    episodes = ticket.episodes
    # Joined as they are: an array is a buffer, which numpy's annotations do not say.
    arrays: list[Any] = [np.ascontiguousarray(episode.response_ids, "<i4") for episode in episodes]
    arrays += [np.ascontiguousarray(episode.behaviour_logprobs, "<f4") for episode in episodes]
    length = len(head).to_bytes(_LENGTH_BYTES, "little")
    return b"".join([length, head, bytes(-len(head) % 4), *prompts, *arrays])


@dataclass(slots=True)
class TicketFrame:
    """A closed ticket whose header has been read; its arrays, from byte `arrays` of the frame on, have not."""

    header: TicketHeader
    frame: Frame
    arrays: int

    @classmethod
    def read(cls, frame: Frame) -> TicketFrame:
        """Raises MessageError; what stands before its first colon is the kind of fault, of which there are few."""
        size = len(frame)
        length = int.from_bytes(frame[:_LENGTH_BYTES], "little")
        end = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or end > size:
            raise MessageError(f"a closed ticket that is cut short: {size} bytes")
        try:
            header = _decoder.decode(memoryview(frame)[_LENGTH_BYTES:end])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(f"malformed closed ticket: {error}") from error
        return cls(header, frame, end + -length % 4)

    def closed(self, vocabulary: int) -> ClosedTicket:
        """The closed ticket; its arrays are read-only views of the frame.

        Raises MessageError when counts, sizes, spans or values do not fit together, or for an id of no token.
        """
        header = self.header
        episodes = self._episodes(vocabulary)
        return ClosedTicket(
            header.id,
            None if header.proposal is None else episodes[0],
            header.proposed,
            header.problem,
            tuple(episodes[header.proposal is not None :]),
            header.solve_rate,
            header.untrained_episodes,
            header.untrained_tokens,
        )

    def _episodes(self, vocabulary: int) -> list[Episode]:
        """The proposal, if any, then the attempts. Values are checked for all of them at once."""
        header = self.header
        headers = header.attempts if header.proposal is None else (header.proposal, *header.attempts)
        prompt_tokens, response_tokens = sum(header.prompt_tokens), sum([h.response_tokens for h in headers])
        if prompt_tokens + response_tokens > MAX_TOKENS_PER_TICKET:
            raise MessageError("arrays of impossible lengths")
        expected = self.arrays + 4 * (prompt_tokens + 2 * response_tokens)
        if len(self.frame) != expected:
            raise MessageError(f"arrays of another size than announced: {len(self.frame)} bytes instead of {expected}")
        ids = np.frombuffer(self.frame, "<i4", prompt_tokens + response_tokens, self.arrays)
        logprobs = np.frombuffer(self.frame, "<f4", response_tokens, self.arrays + ids.nbytes)
        if ids.view("<u4").max() >= vocabulary:  # a negative id is a large one
            raise MessageError("a token id outside the vocabulary")
        if not np.isfinite(logprobs).all():
            raise MessageError("a log-probability that is not finite")
        prompts = [ids[start:end] for start, end in pairwise(accumulate(header.prompt_tokens, initial=0))]
        responses = ids[prompt_tokens:]
        episodes = []
        start = 0
        for h in headers:
            end = start + h.response_tokens
            if h.prompt >= len(prompts):
                raise MessageError("an episode's prompt is missing")
            if not _cover(h.spans, h.response_tokens):
                raise MessageError("version spans do not cover the response")
            arrays = prompts[h.prompt], responses[start:end], logprobs[start:end]
            episodes.append(Episode(h.role, h.task, *arrays, h.spans, h.truncated, h.verdict, h.reward))
            start = end
        return episodes


def _cover(spans: Sequence[VersionSpan], tokens: int) -> bool:
    if len(spans) == 1:  # as nearly all are
        return spans[0].start == 0 and spans[0].end == tokens
    edge = 0
    for span in spans:
        if span.start != edge or span.end <= edge:
            return False
        edge = span.end
    return edge == tokens
