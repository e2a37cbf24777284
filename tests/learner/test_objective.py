import math

import numpy as np
import pytest
import torch

from learner.objective import LossSums, faded_entropy_coefficient, mean_weights, policy_loss
from shared.config import TrustRegionConfig

TRUST_REGION = TrustRegionConfig(clip_low=0.2, clip_high=0.28, importance_cap=2.0)


def one_token(ratio=1.0, advantage=1.0, behaviour_gap=0.0, trust_region=TRUST_REGION):
    """Loss and d loss / d logp_new of a single token; behaviour_gap = logp_old − logp_behaviour."""
    old = torch.tensor([-1.0])
    new = (old + math.log(ratio)).requires_grad_()
    loss, sums = policy_loss(
        new, old, old - behaviour_gap, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), trust_region, 0.0
    )
    loss.backward()
    return loss.item(), new.grad.item(), sums


def reference(new, old, behaviour, entropy, advantages, weights, low, high, cap, coefficient):
    """The formula of method.md section 4 in float64 numpy."""
    ratio = np.exp(new - old)
    importance = np.minimum(np.exp(old - behaviour), cap)
    surrogate = np.minimum(ratio * advantages, np.clip(ratio, 1 - low, 1 + high) * advantages)
    return -np.sum(weights * importance * surrogate) - coefficient * np.sum(weights * entropy)


def test_equals_the_formula():
    g = np.random.default_rng(0)
    new, old, behaviour = -1 + 0.5 * g.standard_normal((3, 200))
    entropy, weights = g.random((2, 200))
    advantages = g.standard_normal(200)
    expected = reference(new, old, behaviour, entropy, advantages, weights, 0.2, 0.28, 2.0, 0.03)
    tensors = [torch.from_numpy(x) for x in (new, old, behaviour, entropy, advantages, weights)]
    loss, sums = policy_loss(*tensors, TRUST_REGION, 0.03)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert sums.loss.item() == loss.item()
    assert sums.ratio.item() == pytest.approx(np.exp(new - old).sum())
    assert sums.importance_weight.item() == pytest.approx(np.minimum(np.exp(old - behaviour), 2).sum())
    assert sums.importance_weight_squared.item() == pytest.approx((np.minimum(np.exp(old - behaviour), 2) ** 2).sum())
    assert sums.truncated.item() == (np.exp(old - behaviour) > 2).sum()
    assert sums.mismatch.item() == pytest.approx((old - behaviour).sum())
    assert sums.mismatch_absolute.item() == pytest.approx(np.abs(old - behaviour).sum())
    assert sums.mismatch_max.item() == pytest.approx(np.abs(old - behaviour).max())
    assert sums.entropy.item() == pytest.approx(entropy.sum())
    assert sums.tokens.item() == 200


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


@pytest.mark.parametrize(("gap", "weight"), [(0.0, 1.0), (0.5, math.exp(0.5)), (-3.0, math.exp(-3)), (3.0, 2.0)])
def test_importance_weight_is_truncated_and_detached(gap, weight):
    loss, gradient, sums = one_token(ratio=1.1, behaviour_gap=gap)
    assert loss == pytest.approx(-weight * 1.1, rel=1e-6)
    assert gradient == pytest.approx(-weight * 1.1, rel=1e-6)
    assert sums.truncated.item() == (gap == 3.0)


def test_no_gradient_flows_into_old_log_probabilities():
    old, new = (torch.tensor([-1.0], requires_grad=True) for _ in range(2))
    zero = torch.zeros(1)
    policy_loss(new, old, zero, zero, torch.ones(1), torch.ones(1), TRUST_REGION, 0.0)[0].backward()
    assert old.grad is None


def test_importance_correction_can_be_switched_off():
    loss, _, sums = one_token(behaviour_gap=3.0, trust_region=TrustRegionConfig(importance_cap=None))
    assert loss == pytest.approx(-1)
    assert sums.importance_weight.item() == 1
    assert sums.mismatch_max.item() == pytest.approx(3)


def test_entropy_is_raised_and_not_importance_weighted():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    old = torch.full((3,), -1.0)
    weights = torch.tensor([0.5, 0.25, 0.25])
    loss, _ = policy_loss(old, old, old - 3, entropy, torch.zeros(3), weights, TRUST_REGION, 0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    p = log_p.exp().detach()
    by_hand = 0.1 * weights[:, None] * p * (log_p.detach() + entropy.detach()[:, None])
    torch.testing.assert_close(gradient, by_hand)


def test_token_average_weighs_rows_in_numerator_and_denominator():
    weights = mean_weights(torch.tensor([2, 4]), torch.tensor([1.0, 0.125]), "token")
    assert weights.tolist() == pytest.approx([1 / 2.5] * 2 + [0.125 / 2.5] * 4)


def test_sequence_average_is_the_weighted_mean_of_token_means():
    weights = mean_weights(torch.tensor([2, 4]), torch.tensor([1.0, 0.125]), "sequence")
    assert weights.tolist() == pytest.approx([0.5 / 1.125] * 2 + [0.125 / 4 / 1.125] * 4)


@pytest.mark.parametrize("averaging", ["token", "sequence"])
def test_parts_of_a_step_add_up_to_the_whole(averaging):
    g = torch.Generator().manual_seed(0)
    weights = mean_weights(torch.tensor([3, 5, 2]), torch.tensor([1.0, 0.5, 0.5]), averaging)
    values = [torch.randn(10, generator=g, dtype=torch.float64) for _ in range(5)]
    whole, whole_sums = policy_loss(*values, weights, TRUST_REGION, 0.1)
    parts = [policy_loss(*(v[s] for v in values), weights[s], TRUST_REGION, 0.1) for s in (slice(0, 4), slice(4, 10))]
    assert sum(loss for loss, _ in parts).item() == pytest.approx(whole.item(), rel=1e-6)
    combined = LossSums.combine([sums for _, sums in parts])
    for name in LossSums.__dataclass_fields__:
        assert getattr(combined, name).item() == pytest.approx(getattr(whole_sums, name).item(), rel=1e-6)


def test_no_tokens_cost_nothing():
    loss, sums = policy_loss(*[torch.zeros(0)] * 6, TRUST_REGION, 0.1)
    assert loss.item() == sums.tokens.item() == sums.mismatch_max.item() == 0


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
