"""The policy's update in plain PyTorch, to compare with, and what the policy's tests look at."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from random_batches import random_batch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from learner.batch import TrainingBatch, broadcast
from learner.policy import Policy
from shared.config import LearnerConfig

# With the first of Adam's betas at 0, its first moment is the (clipped) gradient itself.
CONFIG = LearnerConfig(lr=1e-3, betas=(0.0, 0.95), gradient_clip=1e9, entropy_coefficient=0.05, logit_chunk_tokens=8)
TEMPERATURE = 0.8


def make_policy(folder: Path, config: LearnerConfig = CONFIG, dtype: str = "float32", **ranks: int) -> Policy:
    return Policy(folder, dtype=dtype, config=config, temperature=TEMPERATURE, **ranks)


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
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        self.gradients: dict[str, torch.Tensor] = {}

    def logprobs(self, prompt: torch.Tensor, response: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        log_p = torch.log_softmax(logits, -1)
        return log_p.gather(1, response[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

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
            w = (old[r] - behaviour[r]).exp().clamp(max=region.importance_cap)
            tokens = w * surrogate + c * entropy
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

    @property
    def config(self) -> LearnerConfig:
        return CONFIG.model_copy(update={"zero_stage": self.zero_stage, "max_tokens": self.max_tokens})

    @property
    def batch(self) -> TrainingBatch:
        return random_batch(rows=self.rows, copies=2)


def train_as_rank(rank: int, port: int, model_folder: Path, cases: list[Case], out: Path) -> None:
    """One of two ranks: only rank 0 has the batches; each writes what it ends with."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    for number, case in enumerate(cases):
        policy = make_policy(model_folder, case.config, rank=rank, world_size=2, local_rank=rank)
        batch = broadcast(case.batch if rank == 0 else None, rank)
        assert batch is not None
        metrics = policy.train(batch)
        numbers = torch.tensor(list(asdict(metrics).values()), dtype=torch.float64)
        gradients = {f"gradient.{name}": g for name, g in gradients_of(policy).items()}
        weights = {f"weight.{name}": w for name, w in weights_of(policy).items()}
        save_file({"metrics": numbers} | gradients | weights, out / f"{number}.{rank}.safetensors")
    assert broadcast(None, rank) is None
    torch.distributed.destroy_process_group()
