"""Random response tokens for the loss, and the loss in float64 NumPy, written from method.md section 4."""

from __future__ import annotations

import math

import numpy as np
import torch

from learner.objective import LossTokens
from shared.config import LearnerConfig


def random_tokens(lengths=(3, 5, 2, 4), *, seed: int = 0, reference: bool = False, spread: float = 0.5) -> LossTokens:
    """float64, log-probabilities around -1; row r has `lengths[r]` tokens."""
    g = np.random.default_rng(seed)
    count = sum(lengths)
    new, old, behaviour, other = -1 + spread * g.standard_normal((4, count))
    return LossTokens(
        new_logprobs=torch.tensor(new),
        entropy=torch.tensor(g.random(count)),
        old_logprobs=torch.tensor(old),
        behaviour_logprobs=torch.tensor(behaviour),
        reference_logprobs=torch.tensor(other) if reference else None,
        advantages=torch.tensor(g.standard_normal(count)),
        token_weights=torch.tensor(g.random(count)),
        rows=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        staleness=torch.tensor(g.choice([0, 1, 3], count)),
    )


def importance_weight(tokens: LossTokens, config: LearnerConfig) -> np.ndarray:
    """w, token by token."""
    region = config.trust_region
    r = np.exp((tokens.old_logprobs - tokens.behaviour_logprobs).numpy())
    rows = tokens.rows.numpy()
    means = np.array([math.prod(r[rows == row]) ** (1 / np.sum(rows == row)) for row in rows])
    w = []
    for own, mean in zip(r, means, strict=True):
        if region.correction == "none":
            w.append(1.0)
        elif region.correction == "truncated":
            w.append(min(own, region.importance_cap))
        elif region.correction == "icepop":
            w.append(own if region.band_low <= own <= region.band_high else 0.0)
        else:
            w.append(min(own, region.importance_cap) if region.band_low <= mean <= region.band_high else 0.0)
    return np.array(w)


def reference_loss(tokens: LossTokens, config: LearnerConfig, entropy_coefficient: float) -> float:
    """The loss, without looking at how it is implemented."""
    region, beta = config.trust_region, config.kl_coefficient
    new, old, advantages = (x.numpy() for x in (tokens.new_logprobs, tokens.old_logprobs, tokens.advantages))
    ratio = np.exp(new - old)
    clipped = np.clip(ratio, 1 - region.clip_low, 1 + region.clip_high)
    policy = -np.minimum(ratio * advantages, clipped * advantages)
    kl = np.zeros_like(new)
    if tokens.reference_logprobs is not None and config.kl_estimator != "k1":
        d = new - tokens.reference_logprobs.numpy()
        kl = d**2 / 2 if config.kl_estimator == "k2" else np.exp(-d) - 1 + d
    per_token = importance_weight(tokens, config) * (policy + beta * kl) - entropy_coefficient * tokens.entropy.numpy()
    return float(np.sum(tokens.token_weights.numpy() * per_token))
