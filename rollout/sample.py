"""What the engine hands out for one completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.episodes import Float32Array, Int32Array, VersionSpan
from shared.errors import EngineError


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


def sample_of(completion: Any) -> Sample:
    """From vLLM's finished CompletionOutput; EngineError when its parts do not fit together."""
    spans = tuple(VersionSpan(int(span.version), span.start, span.end) for span in completion.weight_versions or ())
    count = len(completion.token_ids)
    if not spans or spans[0].start != 0 or spans[-1].end != count:
        raise EngineError(f"the engine reported weight versions {spans} for {count} tokens")
    logprobs = chosen_logprobs(completion.logprobs, first=0)
    if len(logprobs) != count:
        raise EngineError(f"the engine reported {len(logprobs)} log-probabilities for {count} tokens")
    return Sample(
        token_ids=np.asarray(completion.token_ids, dtype=np.int32),
        logprobs=logprobs,
        spans=spans,
        truncated=completion.finish_reason == "length",
    )


def chosen_logprobs(flat: Any, first: int) -> Float32Array:
    """From vLLM's FlatLogprobs: of each position from `first` on, the first entry, which is the token that is there."""
    return np.asarray([flat.logprobs[start] for start in flat.start_indices[first:]], dtype=np.float32)
