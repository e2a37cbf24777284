"""Attention within each sequence of a packed row: sequences may share a beginning, and linear layers stay packed.

Without this, `transformers` builds a dense [T × T] mask for a packed row, which is several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from learner.shared_rows import take_rows

PACKED_ATTENTION = "primezero_packed"
_CAUSAL = (-1, 0)


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring stretches of equal lengths: `count` of `queries` tokens each, which attend to `keys` tokens each."""

    count: int
    queries: int
    keys: int


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayout:
    """How a packed row of T tokens is cut into stretches, and what each stretch attends to.

    A stretch is a sequence, or a part of one that goes on from the end of another stretch, its prefix, which may have
    one too. A token attends to all prefixes of its stretch, and to its own stretch up to itself.

    runs: of stretches, in order; Σ count · queries = T
    key_index: int64 [Σ count · keys], of each stretch in turn the positions in the row of its keys: prefixes, then
        own; None where no stretch has a prefix: then they are the row itself
    query_starts, key_starts: int32 [stretches + 1], where each stretch's queries and keys begin, and the end
    """

    runs: tuple[Run, ...]
    key_index: Tensor | None
    query_starts: Tensor
    key_starts: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], prefixes: Sequence[int | None] | None = None) -> PackedLayout:
        """The layout of stretches of these lengths, in this order; with equals side by side it has the fewest runs.

        prefixes: of each stretch, the index of the one before it in this order that it goes on from
        """
        starts = _starts(lengths)
        # Of each stretch, those that its keys are in.
        shown: list[tuple[int, ...]] = []
        for own, prefix in enumerate(prefixes or [None] * len(lengths)):
            shown.append((own,) if prefix is None else (*shown[prefix], own))
        keys = [sum(lengths[part] for part in parts) for parts in shown]
        key_index = None
        if any(len(parts) > 1 for parts in shown):
            every = [part for parts in shown for part in parts]
            key_index = torch.from_numpy(ranges([starts[part] for part in every], [lengths[part] for part in every]))
        runs = [Run(len(list(run)), *sizes) for sizes, run in groupby(zip(lengths, keys, strict=True))]
        return cls(tuple(runs), key_index, _int32(starts), _int32(_starts(keys)))

    @property
    def longest(self) -> tuple[int, int]:
        """The most queries, and the most keys, of a stretch."""
        return max(run.queries for run in self.runs), max(run.keys for run in self.runs)

    def to(self, device: torch.device) -> PackedLayout:
        """The layout with its tensors on a device."""
        key_index = None if self.key_index is None else to_device(self.key_index, device)
        starts = to_device(self.query_starts, device), to_device(self.key_starts, device)
        return PackedLayout(self.runs, key_index, *starts)


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
    """Causal attention within each sequence of the layout.

    query: [1, heads, T, d]; key, value: [1, key-value heads, T, d]; returns [1, T, heads, d] and no weights.
    The layout travels through the model's forward as the keyword `packed_layout`.

    On a GPU, in 16 bits, it is one kernel for all sequences; otherwise one scaled-dot-product call for each run.
    """
    if attention_mask is not None or dropout or sliding_window is not None:
        raise ValueError("packed attention is causal: no mask, no dropout, no sliding window")
    q, k, v = query[0], key[0], value[0]
    if packed_layout.key_index is not None:
        k, v = (take_rows(x, packed_layout.key_index) for x in (k, v))
    grouped = q.shape[0] != k.shape[0]
    # FlashAttention's kernels, which read where sequences begin from the GPU.
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0:
        attended = varlen_attention(q, k, v, packed_layout, scaling, grouped)
    else:
        attended = run_attention(q, k, v, packed_layout, scaling, grouped)
    return attended[None], None


def run_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scaling: float | None, grouped: bool
) -> Tensor:
    """Run by run: q [heads, T, d], k and v [key-value heads, keys, d]; returns [T, heads, d]."""
    queries = q.split([run.count * run.queries for run in layout.runs], dim=1)
    keys, values = (x.split([run.count * run.keys for run in layout.runs], dim=1) for x in (k, v))
    outputs = []
    for run, *parts in zip(layout.runs, queries, keys, values, strict=True):
        lengths = (run.queries, run.keys, run.keys)
        # [count, heads, length, d]
        q, k, v = (x.unflatten(1, (-1, length)).transpose(0, 1) for x, length in zip(parts, lengths, strict=True))
        mask = None
        if run.keys > run.queries:  # PyTorch's own causal mask would take the first keys for the stretch's own
            mask = torch.ones(run.queries, run.keys, dtype=torch.bool, device=q.device)
            mask = mask.tril_(run.keys - run.queries)
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scaling: float | None, grouped: bool
) -> Tensor:
    """All at once, as `run_attention`; its causal mask ends with the last query at the last key."""
    most_queries, most_keys = layout.longest
    attended: Tensor = varlen_attn(
        *(x.transpose(0, 1) for x in (q, k, v)),
        layout.query_starts,
        layout.key_starts,
        most_queries,
        most_keys,
        scale=scaling,
        window_size=_CAUSAL,
        enable_gqa=grouped,
    )
    return attended


def ranges(starts: npt.ArrayLike, lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """start, start + 1, … start + length − 1 for each start and its length, one after the other: int64."""
    starts, lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
    skipped = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(skipped, lengths) + np.arange(lengths.sum())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on a device; a GPU copies it while the host goes on."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(lengths).tolist()]


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
