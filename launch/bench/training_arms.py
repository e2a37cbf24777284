"""What the learner is compared with: plain loops in PyTorch that train the same model on the same tokens."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from launch.bench.models import compute_device
from launch.bench.rounds import seconds
from learner.attention import PACKED_ATTENTION
from learner.batch import TrainingBatch
from learner.packed_model import load_model
from learner.packing import MicroBatch, StepPlan, plan_step
from learner.policy import Policy
from shared.config import LearnerConfig

TEMPERATURE = 1.0


def make_policy(folder: Path, dtype: str, config: LearnerConfig) -> Policy:
    """The learner's own policy, alone in its process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return Policy(folder, dtype=dtype, config=config, temperature=TEMPERATURE)


def plan_of(batch: TrainingBatch, config: LearnerConfig) -> StepPlan:
    """What `Policy.train` runs on the batch."""
    return plan_step(batch, world_size=1, max_tokens=config.max_tokens, averaging=config.averaging)


class PlainLoop:
    """Forward, backward and AdamW on a Hugging Face model, as few lines as that takes."""

    def __init__(self, folder: Path, dtype: str, config: LearnerConfig, *, attention: str) -> None:
        self.device = torch.device(compute_device())
        model = load_model(folder, dtype)
        model.set_attn_implementation(attention)
        self.model = model.to(self.device).train()
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> None:
        """One optimizer step on the sum of the losses, each with a backward pass of its own."""
        for loss in losses:
            loss().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class BareLoop(PlainLoop):
    """The learner's packed micro-batches, made beforehand; the logits of response tokens at once."""

    def __init__(self, folder: Path, dtype: str, config: LearnerConfig, batch: TrainingBatch) -> None:
        super().__init__(folder, dtype, config, attention=PACKED_ATTENTION)
        micro_batches = [micro_batch.to(self.device) for micro_batch in plan_of(batch, config).ranks[0]]
        self._losses = [partial(self._loss, micro_batch) for micro_batch in micro_batches]

    def train(self) -> None:
        """One step on the batch."""
        self.step(self._losses)

    def _loss(self, micro_batch: MicroBatch) -> Tensor:
        hidden = self.model.model(
            input_ids=micro_batch.token_ids,
            position_ids=micro_batch.position_ids,
            use_cache=False,
            packed_layout=micro_batch.layout,
        ).last_hidden_state[0, micro_batch.predicting]
        log_p = torch.log_softmax(self.model.lm_head(hidden).float(), -1)
        logprobs = log_p.gather(1, micro_batch.targets[:, None])[:, 0]
        # Rows are distinct: a micro-batch's predictions are its rows' tokens, in order.
        return -(micro_batch.token_weights * micro_batch.advantages * logprobs).sum()


class PaddedLoop(PlainLoop):
    """Rows in their order, so many at a time, padded to the longest; the logits of every position."""

    def __init__(self, folder: Path, dtype: str, config: LearnerConfig, batch: TrainingBatch) -> None:
        super().__init__(folder, dtype, config, attention="sdpa")
        self._batch = batch
        self._tokens = int(batch.response_lengths.sum())
        self.size = 1

    @property
    def padded_tokens(self) -> int:
        """What goes through the model in a step, padding included."""
        lengths = self._batch.prompt_lengths + self._batch.response_lengths
        return sum(int(part.max()) * len(part) for part in lengths.split(self.size))

    def choose_size(self, sizes: Sequence[int]) -> None:
        """The fastest of `sizes` rows at a time, of one step each after one that warms up."""

        def duration(size: int) -> float:
            self.size = size
            try:
                self.train()
                return seconds(self.train)
            except torch.OutOfMemoryError:  # which a GPU recovers from
                return math.inf

        self.size = min({min(size, len(self._batch)) for size in sizes}, key=duration)

    def train(self) -> None:
        """One step on the batch."""
        rows = list(zip(self._batch.rows(), self._batch.advantages, strict=True))
        parts = [rows[i : i + self.size] for i in range(0, len(rows), self.size)]
        self.step([partial(self._loss, part) for part in parts])

    def _loss(self, rows: Sequence[tuple[tuple[Tensor, Tensor], Tensor]]) -> Tensor:
        ids = pad_sequence([torch.cat(pair) for pair, _ in rows], batch_first=True)
        lengths = torch.tensor([[len(prompt), len(prompt) + len(response)] for (prompt, response), _ in rows])
        positions = torch.arange(ids.shape[1])
        attended = positions < lengths[:, 1:]
        trained = (positions >= lengths[:, :1]) & attended
        weights = trained * torch.stack([advantage for _, advantage in rows])[:, None] / self._tokens
        ids, attended, weights = (x.to(self.device) for x in (ids, attended, weights))
        logits: Any = self.model(input_ids=ids, attention_mask=attended.long(), use_cache=False).logits
        log_p = torch.log_softmax(logits.float(), -1)
        logprobs = log_p[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        return -(weights[:, 1:] * logprobs).sum()
