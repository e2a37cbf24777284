"""What the engine hands out for one completion, and the pieces that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.episodes import Float32Array, Int32Array, VersionSpan
from shared.errors import EngineError

# How vLLM says that a completion ended; all else is a failure of its own.
_ENDS = ("stop", "length", "abort")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sampled completion.

    token_ids: int32 [tokens], the sampled stop token included
    logprobs: float32 [tokens], of each token under the distribution it was drawn from
    spans: weight versions of the tokens, in order, covering all of them
    truncated: cut by the length limit
    """

    token_ids: Int32Array
    logprobs: Float32Array
    spans: tuple[VersionSpan, ...]
    truncated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What one request sampled of a completion: all of it, or, when it was aborted, as far as it came.

    Arrays as in `Sample`, without tokens after an abort before the first one; spans count from the piece's start.
    """

    token_ids: Int32Array
    logprobs: Float32Array
    spans: tuple[VersionSpan, ...]
    end: str

    @property
    def aborted(self) -> bool:
        """Whether the completion has to go on in another request."""
        return self.end == "abort"


def piece_of(completion: Any, span: Callable[[str, int, int], VersionSpan]) -> Piece:
    """From vLLM's finished CompletionOutput; EngineError when its parts do not fit together.

    span: from the label of the weights, and the first token and the one past the last that they sampled
    """
    labelled = completion.weight_versions or ()
    count = len(completion.token_ids)
    edges = [0, *(part.end for part in labelled)]
    if edges[-1] != count or [part.start for part in labelled] != edges[:-1]:
        raise EngineError(f"the engine reported weight versions {labelled} for {count} tokens")
    logprobs = chosen_logprobs(completion.logprobs, first=0) if count else np.empty(0, dtype=np.float32)
    if len(logprobs) != count:
        raise EngineError(f"the engine reported {len(logprobs)} log-probabilities for {count} tokens")
    if completion.finish_reason not in _ENDS or (count == 0 and completion.finish_reason != "abort"):
        raise EngineError(f"the engine ended a completion of {count} tokens with {completion.finish_reason!r}")
    return Piece(
        token_ids=np.asarray(completion.token_ids, dtype=np.int32),
        logprobs=logprobs,
        spans=tuple(span(part.version, part.start, part.end) for part in labelled),
        end=completion.finish_reason,
    )


def joined(pieces: Sequence[Piece]) -> Sample:
    """The completion that the pieces, in order, are of; the last one is not aborted."""
    if len(pieces) == 1 and len(pieces[0].spans) == 1:  # nearly all
        (piece,) = pieces
        return Sample(piece.token_ids, piece.logprobs, piece.spans, truncated=piece.end == "length")
    spans: list[VersionSpan] = []
    offset = 0
    for piece in pieces:
        for span in piece.spans:
            start, end = span.start + offset, span.end + offset
            if spans and (spans[-1].version, spans[-1].mixed_kv) == (span.version, span.mixed_kv):
                start = spans.pop().start
            spans.append(VersionSpan(span.version, start, end, span.mixed_kv))
        offset += len(piece.token_ids)
    return Sample(
        token_ids=np.concatenate([piece.token_ids for piece in pieces]),
        logprobs=np.concatenate([piece.logprobs for piece in pieces]),
        spans=tuple(spans),
        truncated=pieces[-1].end == "length",
    )


def chosen_logprobs(flat: Any, first: int) -> Float32Array:
    """From vLLM's FlatLogprobs: of each position from `first` on, the first entry, which is the token that is there."""
    logprobs = np.asarray(flat.logprobs, dtype=np.float32)
    if first == 0 and len(logprobs) == len(flat.start_indices):  # one entry each: what is asked for when sampling
        return logprobs
    return logprobs[flat.start_indices[first:]]
