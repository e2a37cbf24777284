"""Attention confined to each sequence of a packed row, while every linear layer stays packed.

Without this, `transformers` builds a dense [T × T] mask for a packed row, which is several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import AttentionInterface

PACKED_ATTENTION = "primezero_packed"


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """How a packed row of T tokens is cut: runs of neighbouring sequences of equal length, in order.

    counts, lengths: sequences in each run, and their common length in tokens; Σ count · length = T
    """

    counts: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> PackedLayout:
        """The layout of sequences of these lengths, packed in this order; sorted, it has the fewest runs."""
        runs = [(len(list(run)), length) for length, run in groupby(lengths)]
        return cls(tuple(count for count, _ in runs), tuple(length for _, length in runs))


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence: one scaled-dot-product call per run of equal length.

    query: [1, heads, T, d]; key, value: [1, key-value heads, T, d]; returns [1, T, heads, d] and no weights.
    The layout travels through the model's forward as the keyword `packed_layout`.
    """
    if attention_mask is not None or dropout or sliding_window is not None:
        raise ValueError("packed attention is causal: no mask, no dropout, no sliding window")
    sizes = [count * length for count, length in zip(packed_layout.counts, packed_layout.lengths, strict=True)]
    runs = zip(packed_layout.lengths, *(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True)
    outputs = []
    for length, *run in runs:
        q, k, v = (x.unflatten(1, (-1, length)).transpose(0, 1) for x in run)  # [count, heads, length, d]
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
