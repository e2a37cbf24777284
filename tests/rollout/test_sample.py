"""What becomes of vLLM's completions."""

from types import SimpleNamespace

import numpy as np
import pytest

from rollout.sample import Piece, chosen_logprobs, joined
from shared.episodes import VersionSpan


@pytest.mark.parametrize(
    ("starts", "first", "chosen"),
    [
        ([0, 1, 2], 0, [-1.0, -2.0, -3.0]),  # as sampling asks for: one entry each
        ([0, 0, 2], 1, [-1.0, -3.0]),  # as scoring does: none for the first token
        ([0, 2], 0, [-1.0, -3.0]),  # the one that is there, then others
    ],
)
def test_of_each_position_the_first_entry_is_the_token_that_is_there(starts, first, chosen):
    flat = SimpleNamespace(logprobs=[-1.0, -2.0, -3.0], start_indices=starts)
    found = chosen_logprobs(flat, first)
    assert found.dtype == np.float32
    assert found.tolist() == chosen


def piece(length: int, end: str, *spans: VersionSpan) -> Piece:
    return Piece(np.arange(length, dtype=np.int32), np.full(length, -0.5, dtype=np.float32), spans, end)


def test_a_completion_in_one_piece_is_that_piece():
    whole = piece(3, "length", VersionSpan(4, 0, 3))
    sample = joined([whole])
    assert sample.token_ids is whole.token_ids
    assert (sample.spans, sample.truncated) == ((VersionSpan(4, 0, 3),), True)


def test_spans_of_one_version_become_one_and_pieces_follow_each_other():
    sample = joined(
        [piece(2, "abort", VersionSpan(4, 0, 1), VersionSpan(4, 1, 2)), piece(1, "stop", VersionSpan(5, 0, 1))]
    )
    assert sample.spans == (VersionSpan(4, 0, 2), VersionSpan(5, 2, 3))
    assert (len(sample.token_ids), sample.truncated) == (3, False)
