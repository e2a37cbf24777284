"""The trained policy: a Hugging Face model in a DeepSpeed engine. The only module that imports DeepSpeed."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor

from learner.attention import PackedLayout
from learner.batch import TrainingBatch
from learner.compiled import compiling
from learner.device_memory import keep_large_blocks_whole
from learner.file_progress import beating_with, bytes_in, bytes_read
from learner.memory_bounds import BUCKET_ELEMENTS
from learner.objective import LossSums, LossTokens, faded_entropy_coefficient, policy_loss
from learner.packed_model import PackedCausalLM, load_model, packed_logprobs
from learner.packing import MicroBatch, StepPlan, plan_step
from learner.policy_weights import PolicyWeights
from learner.reference import ReferenceModel
from learner.rendezvous import AT_MASTER_ADDRESS
from learner.train_metrics import TrainMetrics
from shared.config import LearnerConfig
from shared.errors import CheckpointError

if torch.cuda.is_available():
    keep_large_blocks_whole()
else:
    # Read by DeepSpeed while it is imported.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
import deepspeed.ops

# Under ZeRO-3 a smaller parameter stays whole on every rank: gathering biases and norms costs more than they do.
PERSISTENT_ELEMENTS = 100_000
# Between batches the other ranks wait for rank 0 as long as a batch takes. The launcher sees when a rank dies or hangs
# (`run.hang_timeout_s`), and ends all of them.
LONGEST_WAIT = timedelta(days=7)


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    last_entropy: float | None


class Policy:
    """The weights, their optimizer, and the TRR++ update; a reference model beside them where there is a KL term.

    Every rank makes one; what one is asked for, all are asked for, with the same arguments (`learner/ranks.py`). RANK,
    WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT must be set. Raises ModelFolderError when the model folder is
    missing, incomplete or not a safetensors model.

    beat: called with every micro-batch, and while what is saved or loaded grows
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
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._beat = beat
        self._config, self._temperature = config, temperature
        self._last_entropy: float | None = None
        self._rank, self._world_size = rank, world_size
        self._device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        if self._device.type == "cuda" and config.gpu_memory_share is not None:
            # Beside engines on the same GPU: better an error here than one there.
            torch.cuda.set_per_process_memory_fraction(config.gpu_memory_share, self._device)
        model = PackedCausalLM(load_model(model_folder, dtype), chunk_bytes=int(config.logit_chunk_mib * 2**20))
        if config.activation_checkpointing:
            model.checkpoint_activations()
        self._reference: ReferenceModel | None = None
        if config.kl_coefficient > 0:
            self._reference = ReferenceModel(
                config.reference_model or model_folder,
                policy=model,
                policy_folder=model_folder,
                dtype=dtype,
                device=self._device,
            )
        _init_distributed(rank, world_size)
        settings = _deepspeed_config(config, dtype)
        if self.partitioned:
            _partition(model, settings)
        model.to(self._device)
        optimizer = _optimizer(model, config)
        # It prints memory reports that no setting turns off; warnings go through its logger, errors are raised.
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                lr_scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=_WarmUp(config.warmup_steps)),
                config=settings,
            )
        if self.partitioned:
            # The head's weight is used outside the head's own forward, whose hooks would gather it.
            deepspeed.zero.register_external_parameter(model, model.causal_lm.get_output_embeddings().weight)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # of what was there for the time of setting up

    @property
    def partitioned(self) -> bool:
        """Whether a rank holds but a part of each parameter (ZeRO-3), so that every pass takes all ranks."""
        return self._config.zero_stage == 3

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter by its name in the model folder, in layer order, tied ones once."""
        parameters = self._engine.module.causal_lm.named_parameters()
        return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in parameters}

    @property
    def weights(self) -> PolicyWeights:
        """All parameters, one at a time."""
        return PolicyWeights(self.shapes, self.whole)

    @contextlib.contextmanager
    def whole(self, name: str) -> Iterator[Tensor]:
        """One parameter, detached, on the policy's device; whole as long as the context lasts."""
        parameter = self._engine.module.causal_lm.get_parameter(name)
        with deepspeed.zero.GatheredParameters([parameter], enabled=self.partitioned):
            yield parameter.detach()

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return self._engine.module.vocabulary

    @property
    def penalises_reward(self) -> bool:
        """Whether `reference_penalty` must be taken off the rewards before they are normalised (the k1 estimator)."""
        return self._reference is not None and self._config.kl_estimator == "k1"

    def reference_penalty(self, batch: TrainingBatch) -> Tensor:
        """β · Σ over the response of (logp_old − logp_reference), for each row: float32 [R] on the CPU.

        To be called before the update. A rank scores its part, and gets the whole.
        """
        assert self.penalises_reward
        penalty_R = torch.zeros(len(batch), dtype=torch.float64, device=self._device)
        for micro_batch in self._own_micro_batches(self._plan(batch)):
            log_ratio = self._frozen_logprobs(micro_batch) - self._reference_logprobs(micro_batch)
            penalty_R.index_add_(0, micro_batch.rows, log_ratio[micro_batch.source].double())
        self._let_go()
        torch.distributed.all_reduce(penalty_R)
        return (self._config.kl_coefficient * penalty_R).float().cpu()

    def train(self, batch: TrainingBatch) -> TrainMetrics:
        """One TRR++ update on the batch, in `optimizer_steps_per_batch` optimizer steps.

        A step whose gradient is not finite is skipped: weights and optimizer stay as they are.
        """
        plans = [self._plan(part) for part in batch.mini_batches(self._config.optimizer_steps_per_batch)]
        own = [self._own_micro_batches(plan) for plan in plans]
        # With one optimizer step, logp_old is logp_new with gradients stopped.
        old: list[list[Tensor | None]] = [[None] * len(step) for step in own]
        if len(plans) > 1:
            old = [[self._frozen_logprobs(micro_batch) for micro_batch in step] for step in own]

        sums, gradient_norms, lr = [], [], 0.0
        not_finite: list[int] = []
        for number, (step, old_logprobs) in enumerate(zip(own, old, strict=True)):
            lr = self._engine.get_lr()[0]
            sums += self._accumulate_gradients(step, old_logprobs)
            gradient_norms.append(self._optimizer_step())
            if not math.isfinite(gradient_norms[-1]):
                rows = batch.dealt(self._config.optimizer_steps_per_batch)[number]
                not_finite += [rows[row] for row in self._not_finite_rows(step, len(rows))]
        metrics = TrainMetrics.of(
            batch,
            plans,
            self._over_ranks(LossSums.combine(sums)),
            gradient_norms=gradient_norms,
            not_finite_rows=not_finite,
            lr=lr,
            entropy_coefficient=self._entropy_coefficient(),
            has_reference=self._reference is not None,
        )
        if math.isfinite(metrics.entropy):
            self._last_entropy = metrics.entropy
        return metrics

    def score(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Log-probabilities of token_ids[1:], each given those before it, at temperature 1, nats: float32 [len − 1]."""
        ids = torch.tensor(list(token_ids), device=self._device)
        words, word_index = ids.unique(return_inverse=True)
        positions = torch.arange(len(ids), device=self._device)
        layout = PackedLayout.of([len(ids)]).to(self._device)
        with torch.no_grad():
            logprobs, _ = self._engine.module(
                words[None], word_index, positions[None], layout, positions[:-1], ids[1:], temperature=1.0
            )
        self._let_go()
        return logprobs.cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write what `load` goes on from into `folder`, which must exist; a rank writes its part."""
        torch.distributed.barrier()
        with contextlib.redirect_stdout(io.StringIO()), beating_with(lambda: bytes_in(folder), self._beat):
            self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
            torch.distributed.barrier()

    def load(self, folder: Path, state: object) -> None:
        """Go on from what as many ranks saved in `folder`, and from `state`.

        Raises CheckpointError when they are not of this policy.
        """
        try:
            self._last_entropy = msgspec.convert(state, _State).last_entropy
            with contextlib.redirect_stdout(io.StringIO()), beating_with(bytes_read, self._beat):
                loaded, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
        except Exception as error:  # the library documents no closed list of what foreign files raise
            raise CheckpointError(f"the policy in {folder} cannot be restored: {error}") from error
        if loaded is None:
            raise CheckpointError(f"the policy in {folder} cannot be restored: there is none of as many learner ranks")

    def state(self) -> dict[str, Any]:
        """What `save` does not write, as plain data."""
        state: dict[str, Any] = msgspec.to_builtins(_State(self._last_entropy))
        return state

    def save_pretrained(self, folder: Path) -> None:
        """Write a Hugging Face folder with safetensors weights in the model's dtype; rank 0 writes."""
        weights = None
        if self.partitioned:
            # Rank 0 collects them in the host's memory; the others only take part.
            weights = {name: tensor.to("cpu", copy=True) if self._rank == 0 else None for name, tensor in self.weights}
        if self._rank == 0:
            with beating_with(lambda: bytes_in(folder), self._beat):
                self._engine.module.causal_lm.save_pretrained(folder, state_dict=weights)

    def _plan(self, batch: TrainingBatch) -> StepPlan:
        config = self._config
        return plan_step(batch, world_size=self._world_size, max_tokens=config.max_tokens, averaging=config.averaging)

    def _own_micro_batches(self, plan: StepPlan) -> list[MicroBatch]:
        return [micro_batch.to(self._device) for micro_batch in plan.ranks[self._rank]]

    def _accumulate_gradients(self, step: Sequence[MicroBatch], old: Sequence[Tensor | None]) -> list[LossSums]:
        sums = []
        for number, (micro_batch, old_logprobs) in enumerate(zip(step, old, strict=True), start=1):
            self._engine.set_gradient_accumulation_boundary(number == len(step))
            loss, loss_sums = self._loss(micro_batch, old_logprobs)
            # DeepSpeed averages gradients over the ranks; token_weights already make the sum the step's mean.
            self._engine.backward(loss * self._world_size, scale_wrt_gas=False)
            sums.append(loss_sums)
        return sums

    def _loss(self, micro_batch: MicroBatch, old_logprobs: Tensor | None) -> tuple[Tensor, LossSums]:
        """Every row's own terms, on the log-probabilities that equal rows share."""
        self._beat()
        source = micro_batch.source
        # Before the policy's pass, whose activations stay until the backward pass.
        reference = None if self._reference is None else self._reference_logprobs(micro_batch)[source]
        new_logprobs, entropy = packed_logprobs(self._engine, micro_batch, self._temperature)
        if old_logprobs is None:
            old_logprobs = new_logprobs.detach()
        tokens = LossTokens(
            new_logprobs=new_logprobs[source],
            entropy=entropy[source],
            old_logprobs=old_logprobs[source],
            behaviour_logprobs=micro_batch.behaviour_logprobs,
            reference_logprobs=reference,
            advantages=micro_batch.advantages,
            token_weights=micro_batch.token_weights,
            rows=micro_batch.rows,
            staleness=micro_batch.staleness,
        )
        return policy_loss(tokens, self._config, self._entropy_coefficient())

    def _entropy_coefficient(self) -> float:
        config = self._config
        return faded_entropy_coefficient(config.entropy_coefficient, config.entropy_target, self._last_entropy)

    @torch.no_grad()
    def _frozen_logprobs(self, micro_batch: MicroBatch) -> Tensor:
        self._beat()
        return packed_logprobs(self._engine.module, micro_batch, self._temperature)[0]

    def _let_go(self) -> None:
        """ZeRO-3 keeps at hand what the backward pass would want; after forward passes alone there is none."""
        if self.partitioned:
            self._engine.optimizer.empty_partition_cache()

    def _reference_logprobs(self, micro_batch: MicroBatch) -> Tensor:
        assert self._reference is not None
        return self._reference.logprobs(micro_batch, self._temperature)

    def _optimizer_step(self) -> float:
        """Step, and the gradient norm before clipping; no step, and infinity, where it is not finite."""
        if self._config.zero_stage == 0:
            # DeepSpeed clips here too, but neither tells the norm nor looks whether it is finite.
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return math.inf
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else math.inf

    def _not_finite_rows(self, step: Sequence[MicroBatch], rows: int) -> list[int]:
        """Of the step's rows on all ranks, those whose advantage, weight or log-probabilities are not finite."""
        found = torch.zeros(rows, device=self._device)
        for micro_batch in step:
            logprobs = self._frozen_logprobs(micro_batch)[micro_batch.source]
            terms = (logprobs, micro_batch.behaviour_logprobs, micro_batch.advantages, micro_batch.token_weights)
            finite = torch.stack(terms).isfinite().all(0)
            found.index_put_((micro_batch.rows,), (~finite).float(), accumulate=True)
        self._let_go()
        torch.distributed.all_reduce(found)
        return found.nonzero().flatten().tolist()

    def _over_ranks(self, sums: LossSums) -> LossSums:
        own = {field.name: getattr(sums, field.name) for field in fields(sums) if field.name != "mismatch_max"}
        flat = torch.cat([value.flatten() for value in own.values()])
        torch.distributed.all_reduce(flat)
        torch.distributed.all_reduce(sums.mismatch_max, torch.distributed.ReduceOp.MAX)
        parts = flat.split([value.numel() for value in own.values()])
        added = {name: part.view_as(own[name]) for name, part in zip(own, parts, strict=True)}
        return LossSums(**added, mismatch_max=sums.mismatch_max)


class _WarmUp:
    """The share of the learning rate that optimizer step `step` uses: linear, then 1."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.steps + 1))


def _init_distributed(rank: int, world_size: int) -> None:
    # Its shared-memory collectives are compiled at the first start; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        rank=rank,
        world_size=world_size,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=LONGEST_WAIT,
        init_method=AT_MASTER_ADDRESS,
    )


def _optimizer(model: torch.nn.Module, config: LearnerConfig) -> torch.optim.Optimizer:
    """AdamW, on the device or, offloaded, on the host's cores, for which DeepSpeed compiles it at first use."""
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": 1e-8,
        "weight_decay": config.weight_decay,
    }
    if config.offload_optimizer is True:
        with compiling(), contextlib.redirect_stdout(io.StringIO()):
            return deepspeed.ops.adam.DeepSpeedCPUAdam(model.parameters(), **settings)
    # Fused: one pass over the weights instead of a dozen.
    return torch.optim.AdamW(model.parameters(), fused=True, **settings)


def _partition(model: torch.nn.Module, settings: dict[str, object]) -> None:
    """Leave each rank its part of every parameter; no more than one whole parameter is on the GPU meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.zero.Init(module=model, config_dict_or_path=settings)


def _deepspeed_config(config: LearnerConfig, dtype: str) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            **({"offload_optimizer": {"device": "cpu"}} if config.offload_optimizer is True else {}),
        },
        "bf16": {"enabled": dtype == "bfloat16"},
        # Added up over micro-batches and ranks, and given to the optimizer: ZeRO-1 would round all of it to bfloat16.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # On by default, it waits for the device at every micro-batch from the third step on.
        "timers": {"throughput": {"enabled": False}},
    }
