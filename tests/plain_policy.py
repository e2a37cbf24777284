"""The policy's update in plain PyTorch, to compare with, and what the policy's tests look at."""

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from random_batches import random_batch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from learner.batch import TrainingBatch, broadcast
from learner.policy import Policy
from learner.train_metrics import TrainMetrics
from learner.trainer import _follow_update
from shared.config import LearnerConfig

# With the first of Adam's betas at 0, its first moment is the (clipped) gradient itself.
CONFIG = LearnerConfig(lr=1e-3, betas=(0.0, 0.95), gradient_clip=1e9, entropy_coefficient=0.05, logit_chunk_tokens=8)
TEMPERATURE = 0.8

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


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.module.named_parameters()}


def gradients_of(policy: Policy) -> dict[str, torch.Tensor]:
    """The clipped gradients of the last optimizer step; every rank must ask."""
    from deepspeed.utils import safe_get_full_optimizer_state  # after learner.policy has chosen the accelerator

    def moment(parameter: torch.nn.Parameter) -> torch.Tensor:
        if policy._config.zero_stage == 0:
            return policy._engine.optimizer.state[parameter]["exp_avg"].clone()
        return safe_get_full_optimizer_state(parameter, "exp_avg").view(parameter.shape).clone()

    return {name: moment(p) for name, p in policy.module.named_parameters()}


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
        assert error <= 1e-6, f"{name}: {error:.1e}"
        # Adam's first steps have the size of lr whatever the gradient: rounding decides the sign of those near 0.
        clear = expected.abs() > 1e-3 * largest
        assert (weights[name] - parameter)[clear].abs().max() <= 1e-6, name


@dataclass(frozen=True)
class Case:
    """A configuration and a batch, to be trained on by two ranks and alone."""

    zero_stage: int
    max_tokens: int
    rows: int = 14
    changes: dict[str, Any] = field(default_factory=dict)

    def config(self, reference: Path) -> LearnerConfig:
        own = {"zero_stage": self.zero_stage, "max_tokens": self.max_tokens, "reference_model": reference}
        return CONFIG.model_copy(update=own | self.changes)

    @property
    def batch(self) -> TrainingBatch:
        return random_batch(rows=self.rows, copies=2)


def train_as_rank(rank: int, port: int, model_folder: Path, reference: Path, cases: list[Case], out: Path) -> None:
    """One of two ranks: rank 0 leads, the other follows; each writes what it ends with."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    for number, case in enumerate(cases):
        config = case.config(reference)
        policy = make_policy(model_folder, config, kind=RecordingPolicy, rank=rank, world_size=2, local_rank=rank)
        if rank == 0:
            lead(policy, case.batch)
        else:
            while _follow_update(policy, rank):
                pass
        gradients = {f"gradient.{name}": g for name, g in gradients_of(policy).items()}
        weights = {f"weight.{name}": w for name, w in weights_of(policy).items()}
        save_file(policy.records | gradients | weights, out / f"{number}.{rank}.safetensors")
    torch.distributed.destroy_process_group()


def lead(policy: Policy, batch: TrainingBatch) -> None:
    """What rank 0 does with a batch, and then with none."""
    if policy.penalises_reward:
        broadcast(batch, 0)
        policy.reference_penalty(batch)
    broadcast(batch, 0)
    policy.train(batch)
    broadcast(None, 0)


class RecordingPolicy(Policy):
    """Keeps what its methods return, as tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.records: dict[str, torch.Tensor] = {}

    def reference_penalty(self, batch: TrainingBatch) -> torch.Tensor:
        self.records["penalty"] = super().reference_penalty(batch)
        return self.records["penalty"]

    def train(self, batch: TrainingBatch) -> TrainMetrics:
        metrics = super().train(batch)
        numbers = [math.nan if value is None else value for value in asdict(metrics).values()]
        self.records["metrics"] = torch.tensor(numbers, dtype=torch.float64)
        return metrics
