"""The policy's update in plain PyTorch, to compare with, and what the policy's tests look at."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

import learner.policy
from learner.batch import TrainingBatch
from learner.policy import Policy
from learner.ranks import Leader
from learner.train_metrics import TrainMetrics
from shared.config import LearnerConfig, TrustRegionConfig

# The model is so small that under ZeRO-3 all of it would stay whole.
learner.policy.PERSISTENT_ELEMENTS = 0

# With the first of Adam's betas at 0, its first moment is the (clipped) gradient itself.
CONFIG = LearnerConfig(lr=1e-3, betas=(0.0, 0.95), gradient_clip=1e9, entropy_coefficient=0.05, logit_chunk_mib=0.0015)
TEMPERATURE = 0.8

CAPPED = TrustRegionConfig(importance_cap=1.1)
ICEPOP = TrustRegionConfig(correction="icepop", band_low=0.6, band_high=1.6)
SEQUENCE_MASK = TrustRegionConfig(correction="sequence_mask", band_low=0.6, band_high=1.6)
UNCORRECTED = TrustRegionConfig(correction="none")
# Every branch of a step's passes.
PASSES: list[dict[str, Any]] = [
    {"trust_region": CAPPED},
    {"trust_region": ICEPOP},
    {"trust_region": SEQUENCE_MASK},
    {"trust_region": UNCORRECTED},
    {"averaging": "sequence"},
    {"kl_coefficient": 0.3, "kl_estimator": "k1"},
    {"kl_coefficient": 0.3, "kl_estimator": "k2"},
    {"kl_coefficient": 0.3, "kl_estimator": "k3"},
    {"entropy_coefficient": 0.0},
    {"activation_checkpointing": True},
]
SEVERAL_STEPS = {
    "optimizer_steps_per_batch": 3,
    "max_tokens": 40,
    "betas": (0.0, 0.0),
    "lr": 0.02,
    "gradient_clip": 0.5,
}

AnyPolicy = TypeVar("AnyPolicy", bound=Policy)


def make_policy(
    folder: Path,
    config: LearnerConfig = CONFIG,
    dtype: str = "float32",
    *,
    kind: type[AnyPolicy] = Policy,
    **ranks: int,
) -> AnyPolicy:
    return kind(folder, dtype=dtype, config=config, temperature=TEMPERATURE, **ranks)


def weights_of(policy: Policy | Leader) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.weights}


def gradients_of(policy: Policy) -> dict[str, torch.Tensor]:
    """The clipped gradients of the last optimizer step; every rank must ask."""
    from deepspeed.utils import safe_get_full_optimizer_state  # after learner.policy has chosen the accelerator

    def moment(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        parameter = policy._engine.module.causal_lm.get_parameter(name)
        if policy._config.zero_stage == 0:
            return policy._engine.optimizer.state[parameter]["exp_avg"].clone()
        return safe_get_full_optimizer_state(parameter, "exp_avg").view(shape).clone()

    return {name: moment(name, shape) for name, shape in policy.shapes.items()}


class PlainPyTorch:
    """The same update, row by row, with torch's own autograd and AdamW."""

    def __init__(self, folder: Path, config: LearnerConfig = CONFIG) -> None:
        self.config = config
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.reference = AutoModelForCausalLM.from_pretrained(config.reference_model or folder, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        self.gradients: dict[str, torch.Tensor] = {}

    def logprobs(
        self, prompt: torch.Tensor, response: torch.Tensor, model: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = (model or self.model)(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        log_p = torch.log_softmax(logits / TEMPERATURE, -1)
        return log_p.gather(1, response[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

    @torch.no_grad()
    def log_ratios(self, batch: TrainingBatch) -> list[torch.Tensor]:
        """Each row's logp_policy − logp_reference."""
        return [self.logprobs(*row)[0] - self.logprobs(*row, self.reference)[0] for row in batch.rows()]

    def reference_penalty(self, batch: TrainingBatch) -> torch.Tensor:
        return self.config.kl_coefficient * torch.stack([d.sum() for d in self.log_ratios(batch)])

    def train(self, batch: TrainingBatch) -> float:
        """Returns the largest gradient norm before clipping."""
        parts = batch.mini_batches(self.config.optimizer_steps_per_batch)
        with torch.no_grad():
            old = [[self.logprobs(*row)[0] for row in part.rows()] for part in parts]
        return max(self.step(part, old_logprobs) for part, old_logprobs in zip(parts, old, strict=True))

    def step(self, batch: TrainingBatch, old: list[torch.Tensor]) -> float:
        region, c = self.config.trust_region, self.config.entropy_coefficient
        total, denominator = torch.zeros(()), 0.0
        behaviour = batch.behaviour_logprobs.split(batch.response_lengths.tolist())
        for r, (prompt, response) in enumerate(batch.rows()):
            new, entropy = self.logprobs(prompt, response)
            advantage, weight = batch.advantages[r], batch.row_weights[r].item()
            ratio = (new - old[r]).exp()
            surrogate = torch.min(ratio * advantage, ratio.clamp(1 - region.clip_low, 1 + region.clip_high) * advantage)
            w = self.importance_weight(old[r] - behaviour[r])
            tokens = w * (surrogate - self.kl_term(new, prompt, response)) + c * entropy
            if self.config.averaging == "token":
                total, denominator = total + weight * tokens.sum(), denominator + weight * len(response)
            else:
                total, denominator = total + weight * tokens.mean(), denominator + weight
        self.optimizer.zero_grad()
        (-total / denominator).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters()}
        self.optimizer.step()
        return float(norm)

    def importance_weight(self, mismatch: torch.Tensor) -> torch.Tensor:
        """Of one row."""
        region, r = self.config.trust_region, mismatch.exp()
        capped = r.clamp(max=region.importance_cap)
        if region.correction == "icepop":
            return torch.tensor([x if region.band_low <= x <= region.band_high else 0.0 for x in r.tolist()])
        if region.correction == "sequence_mask":
            mean = math.prod(r.tolist()) ** (1 / len(r))
            return capped if region.band_low <= mean <= region.band_high else torch.zeros_like(r)
        return {"truncated": capped, "none": torch.ones_like(r)}[region.correction]

    def kl_term(self, new: torch.Tensor, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
        beta, estimator = self.config.kl_coefficient, self.config.kl_estimator
        if beta == 0 or estimator == "k1":
            return torch.zeros_like(new)
        with torch.no_grad():
            reference = self.logprobs(prompt, response, self.reference)[0]
        d = new - reference
        return beta * (d**2 / 2 if estimator == "k2" else (-d).exp() - 1 + d)


def assert_same_update(
    gradients: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], plain: PlainPyTorch
) -> None:
    largest = max(g.abs().max() for g in plain.gradients.values())
    for name, parameter in plain.model.named_parameters():
        expected = plain.gradients[name]
        error = (gradients[name] - expected).abs().max() / largest
        assert error <= 2e-6, f"{name}: {error:.1e}"
        # Adam's first steps have the size of lr whatever the gradient: rounding decides the sign of those near 0.
        clear = expected.abs() > 1e-3 * largest
        assert (weights[name] - parameter)[clear].abs().max() <= 1e-6, name


def flat(metrics: TrainMetrics) -> dict[str, float | None]:
    """All numbers of the metrics by name."""
    numbers = asdict(metrics)
    by_staleness = numbers.pop("mismatch_by_staleness")
    return numbers | {f"{name} at {age}": value for age, own in by_staleness.items() for name, value in own.items()}
