"""Collective steps: rank 0 announces each one with its arguments, and the other ranks take part.

Rank 0 alone knows of batches, versions and checkpoints, and decides what is done and when. Ranks trust each other.
Where one fails, the others end with it: their connections break, or the launcher, which watches all of them, ends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor

from learner.batch import TrainingBatch
from learner.policy import LONGEST_WAIT, Policy
from learner.policy_weights import PolicyWeights
from learner.train_metrics import TrainMetrics

MAX_STEP_BYTES = 2**20


class _Step(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """What rank 0 announces."""


class Train(_Step, frozen=True):
    """`Policy.train`; rows, tokens, response_tokens: sizes of the batch, which follows as tensors."""

    rows: int
    tokens: int
    response_tokens: int


class PenaliseReward(_Step, frozen=True):
    """`Policy.reference_penalty`; the batch follows as under Train."""

    rows: int
    tokens: int
    response_tokens: int


class Score(_Step, frozen=True):
    """`Policy.score`."""

    token_ids: tuple[int, ...]


class Gather(_Step, frozen=True):
    """`Policy.whole`."""

    name: str


class Save(_Step, frozen=True):
    """`Policy.save`."""

    folder: str


class SavePretrained(_Step, frozen=True):
    """`Policy.save_pretrained`."""

    folder: str


class Stop(_Step, frozen=True):
    """There is no further step."""


class Leader:
    """Rank 0's policy: it does what `Policy` does, with every rank that it takes.

    Where the weights are whole on every rank, only updates and checkpoints take them all. One rank alone announces
    nothing. `stop` lets the others go; without it they wait for the next step.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._channel = _Channel() if torch.distributed.get_world_size() > 1 else None
        self._gathered = ExitStack()

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return self._policy.vocabulary

    @property
    def penalises_reward(self) -> bool:
        """As `Policy.penalises_reward`."""
        return self._policy.penalises_reward

    @property
    def weights(self) -> PolicyWeights:
        """As `Policy.weights`."""
        return PolicyWeights(self._policy.shapes, self._whole)

    def reference_penalty(self, batch: TrainingBatch) -> Tensor:
        """As `Policy.reference_penalty`."""
        self._announce(PenaliseReward(*_sizes(batch)), batch)
        return self._policy.reference_penalty(batch)

    def train(self, batch: TrainingBatch) -> TrainMetrics:
        """As `Policy.train`."""
        self._announce(Train(*_sizes(batch)), batch)
        return self._policy.train(batch)

    def score(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """As `Policy.score`."""
        self._announce_if_partitioned(Score(tuple(token_ids)))
        return self._policy.score(token_ids)

    def save(self, folder: Path) -> None:
        """As `Policy.save`."""
        self._announce(Save(str(folder)))
        self._policy.save(folder)

    def state(self) -> dict[str, Any]:
        """As `Policy.state`."""
        return self._policy.state()

    def save_pretrained(self, folder: Path) -> None:
        """As `Policy.save_pretrained`."""
        self._announce_if_partitioned(SavePretrained(str(folder)))
        self._policy.save_pretrained(folder)

    def stop(self) -> None:
        """Let the other ranks go: the last thing to be asked for."""
        self._announce(Stop())

    @contextmanager
    def _whole(self, name: str) -> Iterator[Tensor]:
        self._announce_if_partitioned(Gather(name))
        with ExitStack() as self._gathered:
            yield self._gathered.enter_context(self._policy.whole(name))

    def _announce(self, step: _Step, batch: TrainingBatch | None = None) -> None:
        # A pass over the weights that was given up midway: no other rank holds its parameter any more.
        self._gathered.close()
        if self._channel is None:
            return
        self._channel.send(step)
        if batch is not None:
            self._channel.share(batch)

    def _announce_if_partitioned(self, step: _Step) -> None:
        if self._policy.partitioned:
            self._announce(step)


def follow(policy: Policy) -> None:
    """Every other rank: take part in what the leader announces, until it says stop."""
    channel = _Channel()
    while True:
        match channel.receive():
            case Train() as step:
                policy.train(channel.receive_batch(step))
            case PenaliseReward() as step:
                policy.reference_penalty(channel.receive_batch(step))
            case Score(token_ids):
                policy.score(token_ids)
            case Gather(name):
                with policy.whole(name):
                    pass
            case Save(folder):
                policy.save(Path(folder))
            case SavePretrained(folder):
                policy.save_pretrained(Path(folder))
            case Stop():
                return


class _Channel:
    """From rank 0 to all others, on the CPU: a rank that waits in NCCL would keep its GPU busy."""

    def __init__(self) -> None:
        """Every rank makes one at the same time."""
        self._group = None
        if torch.distributed.get_backend() != "gloo":
            self._group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        self._decoder = msgspec.msgpack.Decoder(Train | PenaliseReward | Score | Gather | Save | SavePretrained | Stop)

    def send(self, step: _Step) -> None:
        data = msgspec.msgpack.encode(step)
        if len(data) > MAX_STEP_BYTES:
            raise ValueError(f"a step of {len(data)} bytes is not announced: the limit is {MAX_STEP_BYTES}")
        self._broadcast(torch.tensor([len(data)]))
        self._broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def receive(self) -> _Step:
        size = torch.zeros(1, dtype=torch.int64)
        self._broadcast(size)
        if not 0 < size <= MAX_STEP_BYTES:
            raise ValueError(f"rank 0 announced a step of {int(size)} bytes")
        data = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(data)
        step: _Step = self._decoder.decode(data.numpy().tobytes())
        return step

    def share(self, batch: TrainingBatch) -> None:
        """Rank 0's values into the other ranks' tensors."""
        for field in fields(batch):
            self._broadcast(getattr(batch, field.name))

    def receive_batch(self, sizes: Train | PenaliseReward) -> TrainingBatch:
        batch = TrainingBatch.empty(sizes.rows, sizes.tokens, sizes.response_tokens)
        self.share(batch)
        return batch

    def _broadcast(self, tensor: Tensor) -> None:
        torch.distributed.broadcast(tensor.contiguous(), src=0, group=self._group)


def _sizes(batch: TrainingBatch) -> tuple[int, int, int]:
    return len(batch), len(batch.token_ids), len(batch.behaviour_logprobs)
