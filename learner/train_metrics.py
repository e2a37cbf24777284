"""What one update did, for metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from learner.batch import TrainingBatch
from learner.objective import LossSums
from learner.packing import StepPlan

# Rows that are named; there may be thousands.
MOST_NAMED = 16


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Sampler against learner over the tokens of one staleness, nats.

    mean, max: |logp_learner − logp_behaviour|; kl: mean of logp_behaviour − logp_learner
    """

    tokens: int
    mean: float
    max: float
    kl: float


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """What one call of `Policy.train` did: the same on every rank.

    Means are over the response tokens of all rows, whatever their weight.

    loss: of the objective, mean over the optimizer steps
    gradient_norm: before clipping, largest of the optimizer steps that were made; NaN where none was
    entropy, entropy_coefficient: nats a token, at the sampling temperature; the bonus' weight in this update
    ratio_mean, clip_fraction: ρ, and the share of tokens whose gradient the clip took away
    importance_weight_mean: w
    importance_truncated_share, importance_masked_share: shares of the tokens where w was cut to its cap, and where it
        is 0 for being outside the trust region's band
    effective_sample_size: (Σw)² / (N · Σw²), a share of the tokens; 0 where every w is 0
    mismatch_mean, mismatch_max: |logp_learner − logp_behaviour|, nats
    mismatch_kl: mean of logp_behaviour − logp_learner, nats
    mismatch_by_staleness: the same by how many versions lie between sampler and learner; of those that occur
    reference_kl: KL(policy ‖ reference) a token, by the estimator k3, nats; None without a reference model
    tokens, forward_tokens: response tokens trained on; tokens that went through the policy, the extra pass for old
        log-probabilities included
    unique_rows: distinct sequences as a share of the rows
    lr: of the last optimizer step
    largest_advantage: largest |A|
    skipped_steps: optimizer steps that were not made, for a gradient that is not finite
    not_finite_rows: of their rows, by number in the batch, the first with an advantage or log-probability that is not
        finite
    """

    loss: float
    gradient_norm: float
    entropy: float
    entropy_coefficient: float
    ratio_mean: float
    clip_fraction: float
    importance_weight_mean: float
    importance_truncated_share: float
    importance_masked_share: float
    effective_sample_size: float
    mismatch_mean: float
    mismatch_max: float
    mismatch_kl: float
    mismatch_by_staleness: dict[int, Mismatch]
    reference_kl: float | None
    tokens: int
    forward_tokens: int
    unique_rows: float
    lr: float
    largest_advantage: float
    optimizer_steps: int
    skipped_steps: int
    not_finite_rows: tuple[int, ...]

    @classmethod
    def of(
        cls,
        batch: TrainingBatch,
        plans: Sequence[StepPlan],
        sums: LossSums,
        *,
        gradient_norms: Sequence[float],
        not_finite_rows: Sequence[int],
        lr: float,
        entropy_coefficient: float,
        has_reference: bool,
    ) -> TrainMetrics:
        """From the sums over all optimizer steps and ranks; plans, gradient_norms: one for each step.

        A step was skipped where its norm is not finite; not_finite_rows: of these.
        """
        tokens, made = sums.tokens, [norm for norm in gradient_norms if math.isfinite(norm)]
        weight_squares = tokens * sums.importance_weight_squared
        return cls(
            loss=float(sums.loss / len(plans)),
            gradient_norm=max(made, default=math.nan),
            entropy=float(sums.entropy / tokens),
            entropy_coefficient=entropy_coefficient,
            ratio_mean=float(sums.ratio / tokens),
            clip_fraction=float(sums.clipped / tokens),
            importance_weight_mean=float(sums.importance_weight / tokens),
            importance_truncated_share=float(sums.truncated / tokens),
            importance_masked_share=float(sums.masked / tokens),
            effective_sample_size=float(sums.importance_weight**2 / weight_squares) if weight_squares else 0.0,
            mismatch_mean=float(sums.mismatch_absolute.sum() / tokens),
            mismatch_max=float(sums.mismatch_max.max()),
            mismatch_kl=float(-sums.mismatch.sum() / tokens),
            mismatch_by_staleness=_by_staleness(sums),
            reference_kl=float(sums.reference_kl / tokens) if has_reference else None,
            tokens=int(tokens),
            forward_tokens=sum(plan.forward_tokens for plan in plans) * (2 if len(plans) > 1 else 1),
            unique_rows=sum(plan.sequences for plan in plans) / len(batch),
            lr=lr,
            largest_advantage=float(batch.advantages.abs().max()),
            optimizer_steps=len(plans),
            skipped_steps=len(plans) - len(made),
            not_finite_rows=tuple(sorted(not_finite_rows)[:MOST_NAMED]),
        )


def _by_staleness(sums: LossSums) -> dict[int, Mismatch]:
    columns = (x.tolist() for x in (sums.stale, sums.mismatch_absolute, sums.mismatch_max, sums.mismatch))
    return {
        staleness: Mismatch(tokens=int(tokens), mean=absolute / tokens, max=largest, kl=-total / tokens)
        for staleness, (tokens, absolute, largest, total) in enumerate(zip(*columns, strict=True))
        if tokens
    }
