import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from loss_tokens import importance_weight, random_tokens, reference_loss

from learner.objective import (
    LossSums,
    LossTokens,
    faded_entropy_coefficient,
    importance_weights,
    mean_weights,
    policy_loss,
)
from shared.config import MAX_STALENESS, LearnerConfig, TrustRegionConfig

CONFIG = LearnerConfig(trust_region=TrustRegionConfig(clip_low=0.2, clip_high=0.28, importance_cap=2.0))
CORRECTIONS = ("truncated", "icepop", "sequence_mask", "none")


def config_of(correction="truncated", kl_estimator="k2", kl_coefficient=0.0, **trust_region) -> LearnerConfig:
    region = TrustRegionConfig(**{"correction": correction, "band_low": 0.7, "band_high": 1.4} | trust_region)
    return LearnerConfig(trust_region=region, kl_estimator=kl_estimator, kl_coefficient=kl_coefficient)


def one_token(ratio=1.0, advantage=1.0, behaviour_gap=0.0, config=CONFIG):
    """Loss and d loss / d logp_new of a single token; behaviour_gap = logp_old − logp_behaviour."""
    old = torch.tensor([-1.0])
    new = (old + math.log(ratio)).requires_grad_()
    tokens = LossTokens(
        new_logprobs=new,
        entropy=torch.zeros(1),
        old_logprobs=old,
        behaviour_logprobs=old - behaviour_gap,
        reference_logprobs=None,
        advantages=torch.tensor([advantage]),
        token_weights=torch.ones(1),
        rows=torch.zeros(1, dtype=torch.int64),
        staleness=torch.zeros(1, dtype=torch.int64),
    )
    loss, sums = policy_loss(tokens, config, 0.0)
    loss.backward()
    return loss.item(), new.grad.item(), sums


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("estimator", [None, "k1", "k2", "k3"])
def test_equals_the_formula(correction, estimator):
    config = config_of(correction, estimator or "k2", 0.0 if estimator is None else 0.3)
    tokens = random_tokens((3, 5, 2, 4) * 20, reference=estimator is not None)
    loss, sums = policy_loss(tokens, config, 0.03)
    assert loss.item() == pytest.approx(reference_loss(tokens, config, 0.03), rel=1e-12)
    assert sums.loss.item() == loss.item()


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_gradient_is_that_of_the_formula(correction, estimator):
    config = config_of(correction, estimator, 0.3)
    tokens = random_tokens(reference=True)
    new = tokens.new_logprobs.clone().requires_grad_()
    policy_loss(replace(tokens, new_logprobs=new), config, 0.0)[0].backward()
    step = 1e-6
    for token in range(len(new)):
        losses = []
        for sign in (1, -1):
            moved = tokens.new_logprobs.clone()
            moved[token] += sign * step
            losses.append(reference_loss(replace(tokens, new_logprobs=moved), config, 0.0))
        assert new.grad[token].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-6, abs=1e-8)


def test_the_sums_are_those_of_the_tokens():
    tokens = random_tokens((3, 5, 2, 4) * 20, reference=True)
    mismatch = (tokens.old_logprobs - tokens.behaviour_logprobs).numpy()
    w = np.minimum(np.exp(mismatch), 2)
    _, sums = policy_loss(tokens, CONFIG, 0.03)
    assert sums.ratio.item() == pytest.approx(torch.exp(tokens.new_logprobs - tokens.old_logprobs).sum())
    assert sums.importance_weight.item() == pytest.approx(w.sum())
    assert sums.importance_weight_squared.item() == pytest.approx((w**2).sum())
    assert sums.truncated.item() == (np.exp(mismatch) > 2).sum() > 0
    assert sums.masked.item() == 0
    assert sums.entropy.item() == pytest.approx(tokens.entropy.sum())
    assert sums.tokens.item() == 280
    d = (tokens.new_logprobs - tokens.reference_logprobs).numpy()
    assert sums.reference_kl.item() == pytest.approx((np.exp(-d) - 1 + d).sum())
    assert policy_loss(replace(tokens, reference_logprobs=None), CONFIG, 0.0)[1].reference_kl.item() == 0


def test_the_mismatch_is_summed_for_each_staleness():
    tokens = random_tokens((3, 5, 2, 4) * 20)
    mismatch, staleness = (tokens.old_logprobs - tokens.behaviour_logprobs).numpy(), tokens.staleness.numpy()
    _, sums = policy_loss(tokens, CONFIG, 0.03)
    for version in range(MAX_STALENESS + 1):
        own = mismatch[staleness == version]
        assert sums.stale[version].item() == len(own)
        assert (len(own) > 0) == (version in (0, 1, 3))
        assert sums.mismatch[version].item() == pytest.approx(own.sum())
        assert sums.mismatch_absolute[version].item() == pytest.approx(np.abs(own).sum())
        assert sums.mismatch_max[version].item() == pytest.approx(np.abs(own).max(initial=0))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_descending_the_loss_moves_probability_in_the_advantage_s_direction(advantage):
    _, gradient, _ = one_token(advantage=advantage)
    assert gradient == pytest.approx(-advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "clipped"),
    [
        (1.5, 1.0, 1.28, True),  # already more likely than the trust region allows
        (1.5, -1.0, -1.5, False),  # made likelier, but bad: the gradient must stay
        (0.5, -1.0, -0.8, True),
        (0.5, 1.0, 0.5, False),
        (1.27, 1.0, 1.27, False),
        (0.81, -1.0, -0.81, False),
    ],
)
def test_clip_acts_on_the_ratio(ratio, advantage, surrogate, clipped):
    loss, gradient, sums = one_token(ratio, advantage)
    assert loss == pytest.approx(-surrogate, rel=1e-6)
    assert gradient == pytest.approx(0 if clipped else -ratio * advantage, rel=1e-6)
    assert sums.clipped.item() == clipped


@pytest.mark.parametrize("advantage", [5.0, -22.6])
def test_clip_leaves_large_advantages_alone(advantage):
    loss, gradient, _ = one_token(advantage=advantage)
    assert loss == pytest.approx(-advantage)
    assert gradient == pytest.approx(-advantage)


@pytest.mark.parametrize(
    ("correction", "gap", "weight"),
    [
        ("truncated", 0.0, 1.0),
        ("truncated", 0.5, math.exp(0.5)),
        ("truncated", -3.0, math.exp(-3)),
        ("truncated", 3.0, 2.0),
        ("truncated", 1000.0, 2.0),
        ("none", 3.0, 1.0),
        ("none", -3.0, 1.0),
        ("icepop", 1.0, math.exp(1.0)),  # inside the band nothing is capped
        ("icepop", 1.2, 0.0),
        ("icepop", -0.6, math.exp(-0.6)),
        ("icepop", -0.8, 0.0),
        ("icepop", 1000.0, 0.0),
        ("sequence_mask", 0.9, 2.0),
        ("sequence_mask", 1.2, 0.0),
        ("sequence_mask", -0.6, math.exp(-0.6)),
        ("sequence_mask", -0.8, 0.0),
    ],
)
def test_importance_weight_of_one_token_is_detached(correction, gap, weight):
    config = config_of(correction, band_low=0.5, band_high=3.0)
    loss, gradient, sums = one_token(ratio=1.1, behaviour_gap=gap, config=config)
    assert loss == pytest.approx(-weight * 1.1, rel=1e-6)
    assert gradient == pytest.approx(-weight * 1.1, rel=1e-6)
    assert sums.importance_weight.item() == pytest.approx(weight)
    assert sums.truncated.item() == (weight == 2.0)
    assert sums.masked.item() == (weight == 0.0)
    assert sums.mismatch_max[0].item() == pytest.approx(abs(gap))
    assert sums.tokens.item() == 1


def test_a_sequence_is_masked_whole_by_its_geometric_mean():
    """Row 7: ratios 4, 1/4, 1 have the mean 1 and stay; row 2: 2, 2, 2 go; row 4: 1, 1, 3 (mean 3^⅓ = 1.44) go."""
    rows = torch.tensor([7, 7, 7, 2, 2, 2, 4, 4, 4])
    mismatch = torch.tensor([4, 0.25, 1, 2, 2, 2, 1, 1, 3]).log()
    found = importance_weights(mismatch, rows, config_of("sequence_mask").trust_region)
    assert found.weight.tolist() == pytest.approx([2, 0.25, 1, 0, 0, 0, 0, 0, 0])
    assert found.masked.tolist() == [False] * 3 + [True] * 6
    assert found.truncated.tolist() == [True] + [False] * 8
    wider = importance_weights(mismatch, rows, config_of("sequence_mask", band_high=1.5).trust_region)
    assert wider.weight.tolist() == pytest.approx([2, 0.25, 1, 0, 0, 0, 1, 1, 2])


@pytest.mark.parametrize("correction", ["icepop", "sequence_mask"])
def test_masked_tokens_give_no_gradient_and_stay_in_the_denominator(correction):
    config = config_of(correction, "k3", 0.3)
    tokens = random_tokens((3, 5, 2, 4) * 5, reference=True, spread=0.4)
    new = tokens.new_logprobs.clone().requires_grad_()
    _, sums = policy_loss(replace(tokens, new_logprobs=new), config, 0.0)
    masked = importance_weight(tokens, config) == 0
    assert 0 < masked.sum() == sums.masked.item() < len(masked)
    policy_loss(replace(tokens, new_logprobs=new), config, 0.0)[0].backward()
    assert not new.grad[masked].any()

    # The others' gradients are those of a loss without any mask: no denominator has shrunk.
    open_band = config_of(correction, "k3", 0.3, band_low=1e-9, band_high=1e9)
    unmasked = tokens.new_logprobs.clone().requires_grad_()
    _, all_sums = policy_loss(replace(tokens, new_logprobs=unmasked), open_band, 0.0)
    policy_loss(replace(tokens, new_logprobs=unmasked), open_band, 0.0)[0].backward()
    torch.testing.assert_close(new.grad[~masked], unmasked.grad[~masked])
    assert sums.tokens.item() == all_sums.tokens.item() == len(masked)


def test_gradients_flow_into_the_trained_policy_alone():
    tokens = random_tokens(reference=True)
    values = {f.name: getattr(tokens, f.name).clone() for f in fields(tokens)}
    watched = {name: value.requires_grad_() for name, value in values.items() if name.endswith(("logprobs", "entropy"))}
    policy_loss(LossTokens(**values | watched), config_of("sequence_mask", "k3", 0.1), 0.1)[0].backward()
    reached = {name for name, value in watched.items() if value.grad is not None}
    assert reached == {"new_logprobs", "entropy"}


def test_entropy_is_raised_and_not_importance_weighted():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    old, weights = torch.full((3,), -1.0), torch.tensor([0.5, 0.25, 0.25])
    tokens = LossTokens(
        new_logprobs=old,
        entropy=entropy,
        old_logprobs=old,
        behaviour_logprobs=old - torch.tensor([3.0, 0.0, -3.0]),
        reference_logprobs=None,
        advantages=torch.zeros(3),
        token_weights=weights,
        rows=torch.arange(3),
        staleness=torch.zeros(3, dtype=torch.int64),
    )
    p = log_p.exp().detach()
    by_hand = 0.1 * weights[:, None] * p * (log_p.detach() + entropy.detach()[:, None])
    for correction in CORRECTIONS:
        loss, _ = policy_loss(tokens, config_of(correction), 0.1)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        torch.testing.assert_close(gradient, by_hand)


def test_token_average_weighs_rows_in_numerator_and_denominator():
    weights = mean_weights(torch.tensor([2, 4]), torch.tensor([1.0, 0.125]), "token")
    assert weights.tolist() == pytest.approx([1 / 2.5] * 2 + [0.125 / 2.5] * 4)


def test_sequence_average_is_the_weighted_mean_of_token_means():
    weights = mean_weights(torch.tensor([2, 4]), torch.tensor([1.0, 0.125]), "sequence")
    assert weights.tolist() == pytest.approx([0.5 / 1.125] * 2 + [0.125 / 4 / 1.125] * 4)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("averaging", ["token", "sequence"])
def test_parts_of_a_step_add_up_to_the_whole(averaging, correction):
    tokens = random_tokens((3, 5, 2), reference=True)
    tokens = replace(
        tokens, token_weights=mean_weights(torch.tensor([3, 5, 2]), torch.tensor([1.0, 0.5, 0.5]), averaging)
    )
    config = config_of(correction, "k2", 0.2)
    whole, whole_sums = policy_loss(tokens, config, 0.1)
    halves = [
        LossTokens(**{f.name: getattr(tokens, f.name)[part] for f in fields(tokens)})
        for part in (slice(0, 3), slice(3, 10))
    ]
    parts = [policy_loss(half, config, 0.1) for half in halves]
    assert sum(loss for loss, _ in parts).item() == pytest.approx(whole.item(), rel=1e-6)
    combined = LossSums.combine([sums for _, sums in parts])
    for name in LossSums.__dataclass_fields__:
        torch.testing.assert_close(getattr(combined, name), getattr(whole_sums, name), rtol=1e-6, atol=0)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_no_tokens_cost_nothing(correction):
    none = torch.zeros(0, dtype=torch.int64)
    nothing = LossTokens(*[torch.zeros(0)] * 7, rows=none, staleness=none)
    loss, sums = policy_loss(nothing, config_of(correction, "k3", 0.1), 0.1)
    assert loss.item() == sums.tokens.item() == sums.mismatch_max.max().item() == sums.stale.sum().item() == 0


@pytest.mark.parametrize(
    ("target", "entropy", "coefficient"),
    [
        (None, 0.7, 0.2),
        (None, None, 0.2),
        (0.5, None, 0.0),
        (0.5, 0.0, 0.2),
        (0.5, 0.125, 0.15),
        (0.5, 0.5, 0.0),
        (0.5, 3.0, 0.0),
    ],
)
def test_the_entropy_bonus_fades_towards_its_target(target, entropy, coefficient):
    assert faded_entropy_coefficient(0.2, target, entropy) == pytest.approx(coefficient)
