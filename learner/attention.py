"""Attention confined to each sequence of a packed row, while every linear layer stays packed.

Without this, `transformers` builds a dense [T × T] mask for a packed row, which is several times slower. On a GPU in
half precision it is one call of torch's variable-length attention; elsewhere one scaled-dot-product call for each run
of sequences of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

PACKED_ATTENTION = "primezero_packed"


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """How a packed row of T tokens is cut: runs of neighbouring sequences of equal length, in order.

    counts, lengths: sequences in each run, and their common length in tokens; Σ count · length = T
    offsets: int32 [sequences + 1], where each sequence begins, and T; beside the tokens, for kernels that read it
    """

    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    offsets: Tensor = field(compare=False)

    @classmethod
    def of(cls, lengths: Sequence[int]) -> PackedLayout:
        """The layout of sequences of these lengths, packed in this order; sorted, it has the fewest runs."""
        runs = [(len(list(run)), length) for length, run in groupby(lengths)]
        offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(tuple(count for count, _ in runs), tuple(length for _, length in runs), offsets)

    def with_offsets(self, offsets: Tensor) -> PackedLayout:
        """The same layout with its offsets elsewhere."""
        return replace(self, offsets=offsets)


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
    """Causal attention within each sequence.

    query: [1, heads, T, d]; key, value: [1, key-value heads, T, d]; returns [1, T, heads, d] and no weights.
    The layout travels through the model's forward as the keyword `packed_layout`.
    """
    if attention_mask is not None or dropout or sliding_window is not None:
        raise ValueError("packed attention is causal: no mask, no dropout, no sliding window")
    if _variable_length(query):
        return _by_offsets(query, key, value, packed_layout, scaling), None
    return _by_runs(query, key, value, packed_layout, scaling), None


def _variable_length(query: Tensor) -> bool:
    """Whether FlashAttention's kernels take it: they read cuts from the GPU, so that a layer is one launch."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0


def _by_offsets(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, d]
    longest = max(layout.lengths)
    attended: Tensor = varlen_attn(
        *(q, k, v, layout.offsets, layout.offsets, longest, longest),
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[None]


def _by_runs(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
    sizes = [count * length for count, length in zip(layout.counts, layout.lengths, strict=True)]
    runs = zip(layout.lengths, *(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True)
    outputs = []
    for length, *run in runs:
        q, k, v = (x.unflatten(1, (-1, length)).transpose(0, 1) for x in run)  # [count, heads, length, d]
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None]


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
