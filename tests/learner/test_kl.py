"""The KL estimators, by enumerating everything that a small policy can say."""

import pytest
import torch

from learner.objective import LossTokens, kl_estimate, policy_loss
from shared.config import LearnerConfig

VOCABULARY = 6
BETA = 0.7


def distributions() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the policy, which carry gradients, and log-probabilities of the reference: float64 [V]."""
    g = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, VOCABULARY, generator=g, dtype=torch.float64)
    return logits.requires_grad_(), torch.log_softmax(reference, -1)


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def expected_gradient(estimator: str, behaviour_shift: torch.Tensor | None = None) -> torch.Tensor:
    """Of the loss over all tokens, each as often as the policy says it; k1 as a reward without baseline."""
    logits, reference = distributions()
    log_p = torch.log_softmax(logits, -1)
    old = log_p.detach()
    advantages = -BETA * (old - reference) if estimator == "k1" else torch.zeros_like(old)
    behaviour = old if behaviour_shift is None else torch.log_softmax(old + behaviour_shift, -1)
    tokens = LossTokens(
        new_logprobs=log_p,
        entropy=torch.zeros_like(old),
        old_logprobs=old,
        behaviour_logprobs=behaviour,
        reference_logprobs=reference,
        advantages=advantages,
        token_weights=behaviour.exp(),
        rows=torch.arange(VOCABULARY),
        staleness=torch.zeros(VOCABULARY, dtype=torch.int64),
    )
    region = {"importance_cap": 1e9}
    config = LearnerConfig(kl_coefficient=BETA, kl_estimator=estimator, trust_region=region)
    return torch.autograd.grad(policy_loss(tokens, config, 0.0)[0], logits)[0]


def exact_gradients() -> tuple[torch.Tensor, torch.Tensor]:
    """β times the gradients of KL(policy ‖ reference) and KL(reference ‖ policy)."""
    logits, reference = distributions()
    (reverse,) = torch.autograd.grad(reverse_kl(torch.log_softmax(logits, -1), reference), logits)
    (forward,) = torch.autograd.grad(reverse_kl(reference, torch.log_softmax(logits, -1)), logits)
    return BETA * reverse, BETA * forward


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_on_policy_k1_as_a_reward_and_k2_as_a_loss_have_the_reverse_kl_gradient(estimator):
    reverse, forward = exact_gradients()
    torch.testing.assert_close(expected_gradient(estimator), reverse)
    assert not torch.allclose(reverse, forward, rtol=0.1)


def test_on_policy_k3_as_a_loss_has_the_forward_kl_gradient_instead():
    reverse, forward = exact_gradients()
    found = expected_gradient("k3")
    torch.testing.assert_close(found, forward)
    assert not torch.allclose(found, reverse, rtol=0.1)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_importance_weight_makes_the_gradient_of_another_sampler_s_tokens_the_same(estimator):
    shift = torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64)
    torch.testing.assert_close(expected_gradient(estimator, shift), expected_gradient(estimator))


def test_values_by_enumeration():
    """k3 is unbiased and never negative; k2 is half the second moment of the log-ratio."""
    logits, reference = distributions()
    log_p = torch.log_softmax(logits.detach(), -1)
    d = log_p - reference
    k2, k3 = kl_estimate(d, "k2"), kl_estimate(d, "k3")
    assert (log_p.exp() * k3).sum().item() == pytest.approx(reverse_kl(log_p, reference).item(), rel=1e-12)
    assert (k3 >= 0).all()
    assert (log_p.exp() * k2).sum().item() == pytest.approx(0.5 * (log_p.exp() * d**2).sum().item(), rel=1e-12)


def test_a_policy_that_is_its_reference_pays_nothing():
    zero = torch.zeros(4, requires_grad=True)
    for estimator in ("k2", "k3"):
        values = kl_estimate(zero, estimator)
        assert not values.any()
        assert not torch.autograd.grad(values.sum(), zero)[0].any()


def test_k3_keeps_its_digits_near_zero():
    d = torch.tensor([1e-3])
    assert kl_estimate(d, "k3").item() == pytest.approx(5e-7, rel=1e-3)
