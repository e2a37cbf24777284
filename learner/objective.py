"""The TRR++ loss: clipped policy gradient with truncated importance sampling, and an entropy bonus.

The clipped surrogate and the advantages are REINFORCE++'s (arXiv 2501.03262) as Absolute Zero uses them
(arXiv 2505.03335); the weight w corrects for the sampler being another engine, or an older policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from shared.config import TrustRegionConfig


@dataclass(frozen=True, slots=True, eq=False)
class LossSums:
    """What the loss did, as sums over response tokens: float64 scalars without gradients.

    Parts of a step, and ranks, add up, but for mismatch_max, of which the largest counts.

    loss: of the tokens, already weighted; tokens: their number; entropy: H, nats; ratio: ρ
    importance_weight, importance_weight_squared: w and w²
    clipped, truncated: tokens where the clip took the gradient away, where w was cut to its cap
    mismatch, mismatch_absolute, mismatch_max: of logp_old − logp_behaviour, nats
    """

    loss: Tensor
    tokens: Tensor
    entropy: Tensor
    ratio: Tensor
    importance_weight: Tensor
    importance_weight_squared: Tensor
    clipped: Tensor
    truncated: Tensor
    mismatch: Tensor
    mismatch_absolute: Tensor
    mismatch_max: Tensor

    @classmethod
    def combine(cls, parts: Sequence[LossSums]) -> LossSums:
        """The sums over all parts."""
        table = {field.name: torch.stack([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        return cls(**{name: column.max() if name == "mismatch_max" else column.sum() for name, column in table.items()})


def policy_loss(
    new_logprobs: Tensor,
    old_logprobs: Tensor,
    behaviour_logprobs: Tensor,
    entropy: Tensor,
    advantages: Tensor,
    token_weights: Tensor,
    trust_region: TrustRegionConfig,
    entropy_coefficient: float,
) -> tuple[Tensor, LossSums]:
    """−Σ token_weight · [ w · min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A) + c·H ], with ρ = exp(logp_new − logp_old).

    All tensors [N], one entry per response token: log-probabilities and entropy in nats, the token's row's
    advantage, and its weight in the mean (`mean_weights`). w = min(exp(logp_old − logp_behaviour), C) carries no
    gradient. Gradients flow through new_logprobs and entropy only.
    """
    old_logprobs = old_logprobs.detach()
    ratio = torch.exp(new_logprobs - old_logprobs)
    clipped_ratio = ratio.clamp(1 - trust_region.clip_low, 1 + trust_region.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages)

    mismatch = old_logprobs - behaviour_logprobs
    cap = trust_region.importance_cap
    uncapped = torch.ones_like(mismatch) if cap is None else torch.exp(mismatch)
    importance_weight = uncapped if cap is None else uncapped.clamp(max=cap)

    loss = -(token_weights * (importance_weight * surrogate + entropy_coefficient * entropy)).sum()
    return loss, LossSums(
        loss=loss.detach().double(),
        tokens=_total(torch.ones_like(mismatch)),
        entropy=_total(entropy),
        ratio=_total(ratio),
        importance_weight=_total(importance_weight),
        importance_weight_squared=_total(importance_weight.square()),
        clipped=_total(clipped_ratio * advantages < ratio * advantages),
        truncated=_total(importance_weight < uncapped),
        mismatch=_total(mismatch),
        mismatch_absolute=_total(mismatch.abs()),
        mismatch_max=mismatch.abs().amax().double() if len(mismatch) else mismatch.new_zeros((), dtype=torch.float64),
    )


def faded_entropy_coefficient(coefficient: float, target: float | None, entropy: float | None) -> float:
    """The coefficient c for a batch: `coefficient` · max(0, 1 − entropy / target).

    A constant bonus that is strong enough to keep a policy from collapsing can also feed on itself: the more
    random the tokens that the reward does not see, the more there is to gain from them. This one ends at the target.

    target: nats a token, or None for a constant bonus; entropy: of the batch before, None for the first, which has
    no bonus then
    """
    if target is None:
        return coefficient
    return 0.0 if entropy is None else coefficient * max(0.0, 1 - entropy / target)


def mean_weights(response_lengths: Tensor, row_weights: Tensor, averaging: Literal["token", "sequence"]) -> Tensor:
    """Each response token's weight in the mean over one optimizer step.

    "token": row weight / Σ over all tokens of their row's weight. "sequence": each row's token mean, times its row
    weight, / Σ of row weights. The weights of all tokens of the step sum to 1, however it is split up.

    response_lengths: int64 [R], row_weights: float [R]; returns float32 [sum of response_lengths], row after row
    """
    lengths, weights = response_lengths.double(), row_weights.double()
    per_row = {
        "token": weights / (weights * lengths).sum(),
        "sequence": weights / lengths / weights.sum(),
    }[averaging]
    return per_row.repeat_interleave(response_lengths).float()


def _total(values: Tensor) -> Tensor:
    return values.detach().double().sum()
