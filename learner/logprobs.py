"""Log-probabilities and entropy from hidden states, without ever holding [tokens × vocabulary]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ALIGNED = 64


def token_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, *, temperature: float, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy over the full vocabulary, of softmax(hidden · headᵀ / temperature).

    hidden_ND: hidden state of the position that predicts the target; head_VD: the output projection
    returns two float32 [N], nats, differentiable with respect to hidden_ND and head_VD

    Float32 logits of `chunk_bytes` exist at a time, twice, however long the batch and large the vocabulary: of some
    tokens in the forward pass, and of some of the vocabulary in the backward pass, where they are made again. Logits
    that fit into one chunk are kept instead. They are multiplied in the model's dtype, as the sampler does, and
    everything after that is float32.
    """
    logprobs, entropy = _ChunkedLogprobs.apply(hidden_ND, head_VD, targets_N, temperature, chunk_bytes // 4)
    return logprobs, entropy


class _ChunkedLogprobs(torch.autograd.Function):
    """With p = softmax(z): ∂logp_t/∂z = onehot_t − p and ∂H/∂z = −p · (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        entropy_N, normaliser_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        kept: tuple[Tensor, ...] = ()
        for tokens in _slices(len(hidden_ND), len(head_VD), chunk):
            logits = _scaled_logits(hidden_ND[tokens], head_VD, temperature)
            log_p = torch.log_softmax(logits, dim=-1)
            logprobs_N[tokens] = log_p.gather(1, targets_N[tokens, None])[:, 0]
            normaliser_N[tokens] = logits.amax(1) - log_p.amax(1)  # any column would do; this one rounds least
            del logits
            p = log_p.exp()
            if len(hidden_ND) * len(head_VD) <= chunk:
                kept = (log_p, p)
            terms = p * log_p if kept else p.mul_(log_p)
            entropy_N[tokens] = -terms.sum(dim=-1)
            del log_p, p, terms  # before the next ones are made
        ctx.save_for_backward(hidden_ND, head_VD, targets_N, entropy_N, normaliser_N, *kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, head_VD, targets_N, entropy_N, normaliser_N, *kept = ctx.saved_tensors
        # The head's gradient is written once, each part of the vocabulary for all tokens: with one chunk of tokens
        # after the other it would need a float32 copy to add up in.
        grad_head_VD = torch.empty_like(head_VD)
        words = _slices(len(head_VD), len(hidden_ND), ctx.chunk)
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if len(words) > 1 else None
        # ∂/∂z is p · (slope · log p + level), and at the target the log-probability's own gradient more.
        slope_N = -grad_entropy_N / ctx.temperature
        level_N = slope_N * entropy_N - grad_logprobs_N / ctx.temperature
        for part in words:
            if kept:
                log_p, p = kept
            else:
                log_p = _scaled_logits(hidden_ND, head_VD[part], ctx.temperature).sub_(normaliser_N[:, None])
                p = log_p.exp()
            out = None if kept else log_p
            grad_logits = torch.addcmul(level_N[:, None], log_p, slope_N[:, None], out=out).mul_(p)
            _add_at_targets(grad_logits, targets_N - part.start, grad_logprobs_N / ctx.temperature)
            grad_logits = grad_logits.to(hidden_ND.dtype)
            torch.mm(grad_logits.T, hidden_ND, out=grad_head_VD[part])
            if grad_hidden_ND is None:
                return grad_logits @ head_VD, grad_head_VD, None, None, None
            grad_hidden_ND += grad_logits @ head_VD[part]
            del log_p, p, out, grad_logits
        assert grad_hidden_ND is not None
        return grad_hidden_ND.to(hidden_ND.dtype), grad_head_VD, None, None, None


def _slices(length: int, width: int, chunk: int) -> list[slice]:
    """Parts of `length` that have at most `chunk` elements when they are `width` wide, but one at least.

    All of it, where that fits; otherwise whole multiples of `_ALIGNED`, where there is room for one: a GPU multiplies
    matrices of other widths half as fast.
    """
    size = max(1, chunk // max(1, width))
    if _ALIGNED < size < length:
        size -= size % _ALIGNED
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _scaled_logits(hidden_ND: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    logits = (hidden_ND @ head_VD.T).float()
    return logits if temperature == 1 else logits.div_(temperature)


def _add_at_targets(logits_NV: Tensor, targets_N: Tensor, values_N: Tensor) -> None:
    """Add each value at its target, where that is among these columns."""
    here = (targets_N >= 0) & (targets_N < logits_NV.shape[1])
    index = targets_N.clamp(0, logits_NV.shape[1] - 1)
    logits_NV.scatter_add_(1, index[:, None], torch.where(here, values_N, 0.0)[:, None])
