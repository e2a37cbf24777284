"""The trained policy: a Hugging Face model in a DeepSpeed engine. The only module that imports DeepSpeed."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM

from learner.attention import PACKED_ATTENTION, PackedLayout
from learner.batch import TrainingBatch
from learner.logprobs import token_logprobs
from learner.objective import LossSums, faded_entropy_coefficient, policy_loss
from learner.packing import MicroBatch, StepPlan, plan_step
from shared.config import LearnerConfig
from shared.errors import ModelFolderError
from shared.model_folder import check_weights

if not torch.cuda.is_available():
    # Read by DeepSpeed while it is imported.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
import deepspeed.ops

# DeepSpeed's default, 5e8 elements, costs about 1 GB for each of two buckets.
BUCKET_ELEMENTS = 50_000_000


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """What one call of `Policy.train` did: the same on every rank.

    Means are over the response tokens of all rows, whatever their weight.

    loss: of the objective, mean over the optimizer steps
    gradient_norm: before clipping, largest of the optimizer steps
    entropy, entropy_coefficient: nats a token, at the sampling temperature; the bonus' weight in this update
    ratio_mean, clip_fraction: ρ, and the share of tokens whose gradient the clip took away
    importance_weight_mean, importance_truncated_share: w, and the share of tokens where it was cut to its cap
    effective_sample_size: (Σw)² / (N · Σw²), a share of the tokens
    mismatch_mean, mismatch_max: |logp_learner − logp_behaviour|, nats
    mismatch_kl: mean of logp_behaviour − logp_learner, nats
    tokens, forward_tokens: response tokens trained on; tokens that went through the model, the extra pass for old
        log-probabilities included
    unique_rows: distinct sequences as a share of the rows
    lr: of the last optimizer step
    largest_advantage: largest |A|
    """

    loss: float
    gradient_norm: float
    entropy: float
    entropy_coefficient: float
    ratio_mean: float
    clip_fraction: float
    importance_weight_mean: float
    importance_truncated_share: float
    effective_sample_size: float
    mismatch_mean: float
    mismatch_max: float
    mismatch_kl: float
    tokens: int
    forward_tokens: int
    unique_rows: float
    lr: float
    largest_advantage: float
    optimizer_steps: int


class PackedCausalLM(torch.nn.Module):
    """A causal language model that reads packed sequences and gives log-probabilities, never full logits."""

    def __init__(self, causal_lm: Any, chunk_tokens: int) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._chunk_tokens = chunk_tokens

    def forward(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        layout: PackedLayout,
        predicting: Tensor,
        targets: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets and entropies, both float32 [P]; arguments as in MicroBatch."""
        hidden = self.causal_lm.get_decoder()(
            input_ids=token_ids, position_ids=position_ids, use_cache=False, packed_layout=layout
        ).last_hidden_state[0, predicting]
        head = self.causal_lm.get_output_embeddings().weight
        return token_logprobs(hidden, head, targets, temperature=temperature, chunk_tokens=self._chunk_tokens)


class Policy:
    """The weights, their optimizer, and the TRR++ update.

    Every rank makes one and calls `train` with the same batches. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT must be set. Raises ModelFolderError when the model folder is missing, incomplete or not a
    safetensors model, and ConfigError when the settings do not go together.
    """

    def __init__(
        self,
        model_folder: Path,
        *,
        dtype: str,
        config: LearnerConfig,
        temperature: float,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
    ) -> None:
        self._config, self._temperature = config, temperature
        self._last_entropy: float | None = None
        self._rank, self._world_size = rank, world_size
        self._device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        causal_lm = load_model(model_folder, dtype).to(self._device)
        model = PackedCausalLM(causal_lm, config.logit_chunk_tokens)
        _init_distributed(rank, world_size)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=config.betas, eps=1e-8, weight_decay=config.weight_decay
        )
        # It prints memory reports that no setting turns off; warnings go through its logger, errors are raised.
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                lr_scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=_WarmUp(config.warmup_steps)),
                config=_deepspeed_config(config, dtype),
            )

    @property
    def module(self) -> torch.nn.Module:
        """The Hugging Face model itself; its parameters are whole on every rank."""
        return self._engine.module.causal_lm

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return self.module.get_input_embeddings().num_embeddings

    def train(self, batch: TrainingBatch) -> TrainMetrics:
        """One TRR++ update on the batch, in `optimizer_steps_per_batch` optimizer steps."""
        config = self._config
        plans = [
            plan_step(part, world_size=self._world_size, max_tokens=config.max_tokens, averaging=config.averaging)
            for part in batch.mini_batches(config.optimizer_steps_per_batch)
        ]
        own = [[micro_batch.to(self._device) for micro_batch in plan.ranks[self._rank]] for plan in plans]
        # With one optimizer step, logp_old is logp_new with gradients stopped.
        old: list[list[Tensor | None]] = [[None] * len(step) for step in own]
        if len(plans) > 1:
            with torch.no_grad():
                old = [[self._forward(self._engine.module, micro_batch)[0] for micro_batch in step] for step in own]

        sums, gradient_norms, lr = [], [], 0.0
        for step, old_logprobs in zip(own, old, strict=True):
            lr = self._engine.get_lr()[0]
            sums += self._accumulate_gradients(step, old_logprobs)
            gradient_norms.append(self._optimizer_step())
        metrics = _metrics(
            batch,
            plans,
            self._over_ranks(LossSums.combine(sums)),
            gradient_norm=float(np.max(gradient_norms)),
            lr=lr,
            entropy_coefficient=self._entropy_coefficient(),
        )
        self._last_entropy = metrics.entropy
        return metrics

    def score(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Log-probabilities of token_ids[1:], each given those before it, at temperature 1, nats: float32 [len − 1]."""
        ids = torch.tensor(list(token_ids), device=self._device)
        positions = torch.arange(len(ids), device=self._device)
        with torch.no_grad():
            logprobs, _ = self._engine.module(
                ids[None], positions[None], PackedLayout.of([len(ids)]), positions[:-1], ids[1:], temperature=1.0
            )
        return logprobs.cpu().numpy()

    def save_pretrained(self, folder: Path) -> None:
        """Write a Hugging Face folder with safetensors weights in the model's dtype; rank 0 writes."""
        if self._rank == 0:
            self._engine.module.causal_lm.save_pretrained(folder)

    def _accumulate_gradients(self, step: Sequence[MicroBatch], old: Sequence[Tensor | None]) -> list[LossSums]:
        sums = []
        for number, (micro_batch, old_logprobs) in enumerate(zip(step, old, strict=True), start=1):
            self._engine.set_gradient_accumulation_boundary(number == len(step))
            new_logprobs, entropy = self._forward(self._engine, micro_batch)
            if old_logprobs is None:
                old_logprobs = new_logprobs.detach()
            loss, loss_sums = policy_loss(
                new_logprobs[micro_batch.source],
                old_logprobs[micro_batch.source],
                micro_batch.behaviour_logprobs,
                entropy[micro_batch.source],
                micro_batch.advantages,
                micro_batch.token_weights,
                self._config.trust_region,
                self._entropy_coefficient(),
            )
            # DeepSpeed averages gradients over the ranks; token_weights already make the sum the step's mean.
            self._engine.backward(loss * self._world_size, scale_wrt_gas=False)
            sums.append(loss_sums)
        return sums

    def _entropy_coefficient(self) -> float:
        config = self._config
        return faded_entropy_coefficient(config.entropy_coefficient, config.entropy_target, self._last_entropy)

    def _forward(self, model: Any, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        return model(
            micro_batch.token_ids,
            micro_batch.position_ids,
            micro_batch.layout,
            micro_batch.predicting,
            micro_batch.targets,
            temperature=self._temperature,
        )

    def _optimizer_step(self) -> float:
        """Step, and the gradient norm before clipping."""
        norm = None
        if self._config.zero_stage == 0:
            # DeepSpeed clips here too, but does not tell the norm.
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def _over_ranks(self, sums: LossSums) -> LossSums:
        names = [field.name for field in fields(sums) if field.name != "mismatch_max"]
        added = torch.stack([getattr(sums, name) for name in names])
        torch.distributed.all_reduce(added)
        torch.distributed.all_reduce(sums.mismatch_max, torch.distributed.ReduceOp.MAX)
        return LossSums(**dict(zip(names, added, strict=True)), mismatch_max=sums.mismatch_max)


def load_model(folder: Path, dtype: str) -> Any:
    """The causal language model in a folder: safetensors only, nothing fetched, none of the folder's code run.

    Raises ModelFolderError when the folder is missing, incomplete, or not such a model.
    """
    check_weights(folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=PACKED_ATTENTION,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelFolderError(f"cannot load the model in {folder}: {error}") from error
    if absent := sorted(report["missing_keys"]):
        raise ModelFolderError(f"the weights in {folder} are incomplete: {len(absent)} missing, among them {absent[0]}")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ModelFolderError(
            f"the model in {folder} has a bias in its output head, which the learner does not support"
        )
    return model


class _WarmUp:
    """The share of the learning rate that optimizer step `step` uses: linear, then 1."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.steps + 1))


def _init_distributed(rank: int, world_size: int) -> None:
    # Its shared-memory collectives are compiled at the first start; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Between batches the other ranks wait for rank 0 as long as a batch takes; Ray tells when it dies.
    deepspeed.init_distributed(
        rank=rank, world_size=world_size, auto_mpi_discovery=False, verbose=False, timeout=timedelta(days=7)
    )


def _deepspeed_config(config: LearnerConfig, dtype: str) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def _metrics(
    batch: TrainingBatch,
    plans: Sequence[StepPlan],
    sums: LossSums,
    *,
    gradient_norm: float,
    lr: float,
    entropy_coefficient: float,
) -> TrainMetrics:
    tokens = sums.tokens
    return TrainMetrics(
        loss=float(sums.loss / len(plans)),
        gradient_norm=gradient_norm,
        entropy=float(sums.entropy / tokens),
        entropy_coefficient=entropy_coefficient,
        ratio_mean=float(sums.ratio / tokens),
        clip_fraction=float(sums.clipped / tokens),
        importance_weight_mean=float(sums.importance_weight / tokens),
        importance_truncated_share=float(sums.truncated / tokens),
        effective_sample_size=float(sums.importance_weight**2 / (tokens * sums.importance_weight_squared)),
        mismatch_mean=float(sums.mismatch_absolute / tokens),
        mismatch_max=float(sums.mismatch_max),
        mismatch_kl=float(-sums.mismatch / tokens),
        tokens=int(tokens),
        forward_tokens=sum(plan.forward_tokens for plan in plans) * (2 if len(plans) > 1 else 1),
        unique_rows=sum(plan.sequences for plan in plans) / len(batch),
        lr=lr,
        largest_advantage=float(batch.advantages.abs().max()),
        optimizer_steps=len(plans),
    )
