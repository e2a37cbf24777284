"""Training by two ranks, in processes of their own: the first leads, the second follows."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from plain_policy import CONFIG, gradients_of, make_policy, weights_of
from random_batches import random_batch
from safetensors.torch import save_file

from learner.batch import TrainingBatch
from learner.policy import Policy
from learner.ranks import Leader, follow
from learner.train_metrics import TrainMetrics
from shared.config import LearnerConfig

SCORED = [3, 1, 4, 1, 5, 9, 2, 6]


@dataclass(frozen=True)
class Case:
    """A configuration and a batch, to be trained on by two ranks and alone; kept: also to be saved and restored."""

    zero_stage: int
    max_tokens: int
    rows: int = 14
    changes: dict[str, Any] = field(default_factory=dict)
    kept: bool = False

    def config(self, reference: Path) -> LearnerConfig:
        own = {"zero_stage": self.zero_stage, "max_tokens": self.max_tokens, "reference_model": reference}
        return CONFIG.model_copy(update=own | self.changes)

    @property
    def batch(self) -> TrainingBatch:
        return random_batch(rows=self.rows, copies=2)

    @property
    def second_batch(self) -> TrainingBatch:
        return random_batch(rows=self.rows, seed=1)


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
        self.records["metrics"] = torch.frombuffer(bytearray(msgspec.json.encode(metrics)), dtype=torch.uint8)
        return metrics


def metrics_in(records: dict[str, torch.Tensor], name: str = "metrics") -> TrainMetrics:
    return msgspec.json.decode(records[name].numpy().tobytes(), type=TrainMetrics)


def train_as_rank(rank: int, port: int, model_folder: Path, reference: Path, cases: list[Case], out: Path) -> None:
    """One of two ranks; each writes what it ends with. Then rank 0 dies without a word, which must end the other."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    for number, case in enumerate(cases):
        policy, records = train(case, rank, model_folder, reference), {}
        gradients = {f"gradient.{name}": g for name, g in gradients_of(policy).items()}
        weights = {f"weight.{name}": w for name, w in weights_of(policy).items()}
        records = dict(policy.records)
        if case.kept:
            records |= keep_and_go_on(case, policy, rank, model_folder, reference, out / str(number))
        save_file(records | gradients | weights, out / f"{number}.{rank}.safetensors")
    if rank == 0:
        Leader(policy).score(SCORED)
        os._exit(0)
    follow(policy)


def train(case: Case, rank: int, model_folder: Path, reference: Path) -> RecordingPolicy:
    """The first batch."""
    config = case.config(reference)
    policy = make_policy(model_folder, config, kind=RecordingPolicy, rank=rank, world_size=2, local_rank=rank)
    if rank > 0:
        follow(policy)
        return policy
    leader = Leader(policy)
    if leader.penalises_reward:
        leader.reference_penalty(case.batch)
    leader.train(case.batch)
    leader.stop()
    return policy


def keep_and_go_on(
    case: Case, policy: RecordingPolicy, rank: int, model_folder: Path, reference: Path, folder: Path
) -> dict[str, torch.Tensor]:
    """Everything else that rank 0 asks for, and the second batch twice: going on, and after a restart."""
    records = {}
    if rank > 0:
        follow(policy)
    else:
        leader = Leader(policy)
        (folder / "checkpoint").mkdir(parents=True)
        given_up = iter(leader.weights)
        next(given_up)  # it holds a parameter that the other rank has let go
        records["score"] = torch.from_numpy(leader.score(SCORED))
        records |= {f"sent.{name}": w for name, w in weights_of(leader).items()}
        leader.save_pretrained(folder / "model")
        leader.save(folder / "checkpoint")
        leader.train(case.second_batch)
        leader.stop()
    records["went on"] = policy.records["metrics"]
    restored = make_policy(
        model_folder, case.config(reference), kind=RecordingPolicy, rank=rank, world_size=2, local_rank=rank
    )
    restored.load(folder / "checkpoint", {"last_entropy": None})
    restored.train(case.second_batch)
    records["restored"] = restored.records["metrics"]
    return records
