"""The TRR++ loss: clipped policy gradient, correction for the sampler, KL to a reference, and an entropy bonus.

The clipped surrogate and the advantages are REINFORCE++'s (arXiv 2501.03262) as Absolute Zero uses them
(arXiv 2505.03335); the weight w corrects for the sampler being another engine, or an older policy. The estimators
k2 and k3 of the KL divergence are Schulman's (joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from shared.config import MAX_STALENESS, LearnerConfig, TrustRegionConfig


@dataclass(frozen=True, slots=True, eq=False)
class LossTokens:
    """What the loss is made of: N response tokens, all tensors [N].

    new_logprobs, entropy: of the policy that is trained, nats; the only ones that carry gradients
    old_logprobs: of the policy at the start of the update; behaviour_logprobs: of the sampler; nats
    reference_logprobs: of the reference model, nats; None without one
    advantages: of the token's row; token_weights: in the mean (`mean_weights`)
    rows: int64, which row a token is of; a row's tokens are all here, side by side
    staleness: int64, of the token, 0 to MAX_STALENESS
    """

    new_logprobs: Tensor
    entropy: Tensor
    old_logprobs: Tensor
    behaviour_logprobs: Tensor
    reference_logprobs: Tensor | None
    advantages: Tensor
    token_weights: Tensor
    rows: Tensor
    staleness: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LossSums:
    """What the loss did, as sums over response tokens: float64 without gradients, scalars but for the last four.

    Parts of a step, and ranks, add up, but for mismatch_max, of which the largest counts.

    loss: of the tokens, already weighted; tokens: their number; entropy: H, nats; ratio: ρ
    importance_weight, importance_weight_squared: w and w²
    clipped, truncated, masked: tokens where the clip took the gradient away, where w was cut to its cap, where w is 0
        for being outside the band
    reference_kl: k3 of logp_new − logp_reference, nats; 0 without a reference
    stale: number of tokens of each staleness, [MAX_STALENESS + 1]
    mismatch, mismatch_absolute, mismatch_max: of logp_old − logp_behaviour, nats, over the tokens of each staleness,
        [MAX_STALENESS + 1]
    """

    loss: Tensor
    tokens: Tensor
    entropy: Tensor
    ratio: Tensor
    importance_weight: Tensor
    importance_weight_squared: Tensor
    clipped: Tensor
    truncated: Tensor
    masked: Tensor
    reference_kl: Tensor
    stale: Tensor
    mismatch: Tensor
    mismatch_absolute: Tensor
    mismatch_max: Tensor

    @classmethod
    def combine(cls, parts: Sequence[LossSums]) -> LossSums:
        """The sums over all parts."""
        table = {field.name: torch.stack([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        return cls(
            **{name: column.amax(0) if name == "mismatch_max" else column.sum(0) for name, column in table.items()}
        )


def policy_loss(tokens: LossTokens, config: LearnerConfig, entropy_coefficient: float) -> tuple[Tensor, LossSums]:
    """−Σ token_weight · [ w · (min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A) − β·k) + c·H ], ρ = exp(logp_new − logp_old).

    w, from `importance_weights`, carries no gradient; a token where it is 0 stays in the denominator. k is the KL
    estimator k2 or k3, absent under k1, which is taken off the rewards. config: trust region, β and the estimator;
    entropy_coefficient: c. Gradients flow through new_logprobs and entropy only.
    """
    old_logprobs, trust_region = tokens.old_logprobs.detach(), config.trust_region
    ratio = torch.exp(tokens.new_logprobs - old_logprobs)
    clipped_ratio = ratio.clamp(1 - trust_region.clip_low, 1 + trust_region.clip_high)
    surrogate = torch.minimum(ratio * tokens.advantages, clipped_ratio * tokens.advantages)

    mismatch = old_logprobs - tokens.behaviour_logprobs.detach()
    importance = importance_weights(mismatch, tokens.rows, trust_region)

    gain, reference_kl = surrogate, torch.zeros_like(mismatch)
    if tokens.reference_logprobs is not None:
        log_ratio = tokens.new_logprobs - tokens.reference_logprobs.detach()
        reference_kl = kl_estimate(log_ratio.detach(), "k3")
        if config.kl_estimator != "k1":
            gain = surrogate - config.kl_coefficient * kl_estimate(log_ratio, config.kl_estimator)

    loss = -(tokens.token_weights * (importance.weight * gain + entropy_coefficient * tokens.entropy)).sum()
    return loss, LossSums(
        loss=loss.detach().double(),
        tokens=_total(torch.ones_like(mismatch)),
        entropy=_total(tokens.entropy),
        ratio=_total(ratio),
        importance_weight=_total(importance.weight),
        importance_weight_squared=_total(importance.weight.square()),
        clipped=_total(clipped_ratio * tokens.advantages < ratio * tokens.advantages),
        truncated=_total(importance.truncated),
        masked=_total(importance.masked),
        reference_kl=_total(reference_kl),
        stale=_totals(torch.ones_like(mismatch), tokens.staleness),
        mismatch=_totals(mismatch, tokens.staleness),
        mismatch_absolute=_totals(mismatch.abs(), tokens.staleness),
        mismatch_max=_no_totals(mismatch).scatter_reduce_(0, tokens.staleness, mismatch.abs().double(), "amax"),
    )


@dataclass(frozen=True, slots=True, eq=False)
class ImportanceWeights:
    """w of each token, float [N], and where it was cut to the cap or, for being outside the band, to 0: bool [N]."""

    weight: Tensor
    truncated: Tensor
    masked: Tensor


def importance_weights(mismatch: Tensor, rows: Tensor, trust_region: TrustRegionConfig) -> ImportanceWeights:
    """w for the trust region's correction, with r = exp(mismatch); a band's ends belong to it.

    none: 1. truncated: min(r, C) (truncated importance sampling). icepop: r inside the band, 0 outside.
    sequence_mask: min(r, C), and 0 for all tokens of a row whose geometric mean of r is outside the band.

    mismatch: logp_old − logp_behaviour, [N], without gradients; rows: int64 [N], the row of each token
    """
    ratio, nowhere = torch.exp(mismatch), torch.zeros_like(mismatch, dtype=torch.bool)
    match trust_region.correction:
        case "none":
            return ImportanceWeights(torch.ones_like(ratio), nowhere, nowhere)
        case "icepop":
            masked = _outside_band(mismatch, trust_region)
            return ImportanceWeights(ratio.masked_fill(masked, 0.0), nowhere, masked)
        case "sequence_mask":
            masked = _outside_band(_row_means(mismatch, rows), trust_region)
        case "truncated":
            masked = nowhere
    truncated = (ratio > trust_region.importance_cap) & ~masked
    weight = ratio.clamp(max=trust_region.importance_cap).masked_fill(masked, 0.0)
    return ImportanceWeights(weight, truncated, masked)


def kl_estimate(log_ratio: Tensor, estimator: Literal["k2", "k3"]) -> Tensor:
    """Per token, with d = logp_new − logp_reference: k2 = d² / 2, k3 = exp(−d) − 1 + d; nats.

    On tokens that the policy samples the gradient of k2 is that of KL(policy ‖ reference), although its value is
    biased; k3's value is unbiased, but its gradient is that of KL(reference ‖ policy).
    """
    return log_ratio.square() / 2 if estimator == "k2" else torch.expm1(-log_ratio) + log_ratio


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


def _outside_band(log_ratio: Tensor, trust_region: TrustRegionConfig) -> Tensor:
    return (log_ratio < math.log(trust_region.band_low)) | (log_ratio > math.log(trust_region.band_high))


def _row_means(values: Tensor, rows: Tensor) -> Tensor:
    """Each token's row's mean, in float64, [N]; a row's tokens are neighbours.

    Rows are numbered anew, from 0 on: for a table of their own numbers one would have to ask the GPU for the largest.
    """
    number = torch.zeros_like(rows)
    number[1:] = rows[1:] != rows[:-1]
    number = number.cumsum(0)
    sums, counts = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
    sums.index_add_(0, number, values.double())
    counts.index_add_(0, number, torch.ones_like(counts))
    return (sums / counts)[number]


def _total(values: Tensor) -> Tensor:
    return values.detach().double().sum()


def _totals(values: Tensor, staleness: Tensor) -> Tensor:
    """Over the tokens of each staleness, [MAX_STALENESS + 1]; unlike bincount this leaves a GPU its asynchrony."""
    return _no_totals(values).index_add_(0, staleness, values.double())


def _no_totals(like: Tensor) -> Tensor:
    return like.new_zeros(MAX_STALENESS + 1, dtype=torch.float64)
