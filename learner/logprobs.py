"""Log-probabilities and entropy from hidden states, without ever holding [tokens × vocabulary]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, *, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy over the full vocabulary, of softmax(hidden · headᵀ / temperature).

    hidden_ND: hidden state of the position that predicts the target; head_VD: the output projection
    returns two float32 [N], nats, differentiable with respect to hidden_ND and head_VD

    The logits of `chunk_tokens` tokens exist at a time, in the backward pass too, where they are made again.
    They are multiplied in the model's dtype, as the sampler does, and everything after that is float32.
    """
    logprobs, entropy = _ChunkedLogprobs.apply(hidden_ND, head_VD, targets_N, temperature, chunk_tokens)
    return logprobs, entropy


class _ChunkedLogprobs(torch.autograd.Function):
    """With p = softmax(z): ∂logp_t/∂z = onehot_t − p and ∂H/∂z = −p · (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        entropy_N = torch.empty_like(logprobs_N)
        for start in range(0, len(hidden_ND), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            log_p = _log_softmax(hidden_ND[chunk], head_VD, temperature)
            logprobs_N[chunk] = log_p.gather(1, targets_N[chunk, None])[:, 0]
            entropy_N[chunk] = _entropy(log_p, log_p.exp())
        ctx.save_for_backward(hidden_ND, head_VD, targets_N)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, head_VD, targets_N = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32)
        for start in range(0, len(hidden_ND), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            log_p = _log_softmax(hidden_ND[chunk], head_VD, ctx.temperature)
            p = log_p.exp()
            grad_logprobs, grad_entropy = grad_logprobs_N[chunk, None], grad_entropy_N[chunk, None]
            entropy = _entropy(log_p, p)[:, None]
            grad_logits = p.mul_(log_p.add_(entropy).mul_(grad_entropy).add_(grad_logprobs)).neg_()
            grad_logits.scatter_add_(1, targets_N[chunk, None], grad_logprobs)
            grad_logits = (grad_logits / ctx.temperature).to(hidden_ND.dtype)
            grad_hidden_ND[chunk] = grad_logits @ head_VD
            grad_head_VD += grad_logits.T @ hidden_ND[chunk]
        return grad_hidden_ND, grad_head_VD.to(head_VD.dtype), None, None, None


def _log_softmax(hidden_ND: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    logits = (hidden_ND @ head_VD.T).float()
    return torch.log_softmax(logits if temperature == 1 else logits.div_(temperature), dim=-1)


def _entropy(log_p: Tensor, p: Tensor) -> Tensor:
    return -torch.linalg.vecdot(p, log_p)
