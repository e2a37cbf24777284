"""Taking rows of a tensor, each any number of times, so that no gradient of theirs is lost.

PyTorch adds up what a row's uses give it in the tensor's own dtype (on the CPU everywhere, on CUDA wherever it is an
index): in bfloat16 the sum of 16,384 ones is 256. Whatever many places of a micro-batch share goes through here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows of x [..., rows, width] at index, int64 [n]: [..., n, width]; gradients are added up in float32."""
    rows: Tensor = _Rows.apply(x, index)
    return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(-2, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        added = gradient.new_empty(ctx.shape)
        exact = torch.promote_types(gradient.dtype, torch.float32)
        # Matrix by matrix (head by head), for the memory.
        for total, own in zip(added.view(-1, *ctx.shape[-2:]), gradient.reshape(-1, *gradient.shape[-2:]), strict=True):
            total.copy_(own.new_zeros(total.shape, dtype=exact).index_add_(0, index, own.to(exact)))
        return added, None
