"""Training by several gloo ranks, in processes of their own: the first leads, the others follow."""

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from plain_policy import CONFIG, gradients_of, make_policy, weights_of
from random_batches import random_batch
from safetensors.torch import load_file, save_file

from launch.processes import free_port
from learner.batch import TrainingBatch
from learner.packing import MicroBatch, StepPlan
from learner.policy import Policy
from learner.ranks import Leader, follow
from learner.train_metrics import TrainMetrics
from shared.config import LearnerConfig

SCORED = [3, 1, 4, 1, 5, 9, 2, 6]


@dataclass(frozen=True)
class Case:
    """A configuration and a batch, to be trained on by several ranks and alone; kept: also to be saved and restored.

    responses: to each prompt, in turn
    """

    zero_stage: int
    max_tokens: int
    rows: int = 14
    changes: dict[str, Any] = field(default_factory=dict)
    kept: bool = False
    responses: tuple[int, ...] = (1,)
    dtype: str = "float32"

    def config(self, reference: Path) -> LearnerConfig:
        own = {"zero_stage": self.zero_stage, "max_tokens": self.max_tokens, "reference_model": reference}
        return CONFIG.model_copy(update=own | self.changes)

    @property
    def batch(self) -> TrainingBatch:
        return random_batch(rows=self.rows, copies=2, responses=self.responses)

    @property
    def second_batch(self) -> TrainingBatch:
        return random_batch(rows=self.rows, seed=1)


class RecordingPolicy(Policy):
    """Keeps what its methods return, as tensors, and of each micro-batch of the last plan how many tokens it has."""

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

    def _own_micro_batches(self, plan: StepPlan) -> list[MicroBatch]:
        own = super()._own_micro_batches(plan)
        self.records["tokens"] = torch.tensor([micro_batch.token_ids.shape[1] for micro_batch in own])
        return own


def metrics_in(records: dict[str, torch.Tensor], name: str = "metrics") -> TrainMetrics:
    return msgspec.json.decode(records[name].numpy().tobytes(), type=TrainMetrics)


def run_ranks(world_size: int, model_folder: Path, reference: Path, cases: Sequence[Case], out: Path) -> None:
    """Train each of the cases on as many ranks; each writes what it ends with into `out`.

    At last rank 0 dies without a word, which must end the others, of the broken connection.
    """
    # The slow imports are done once, in the process that all are forked from.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    arguments = (world_size, free_port(), model_folder, reference, cases, out)
    ranks = [context.Process(target=_train_as_rank, args=(rank, *arguments)) for rank in range(world_size)]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=500)
        assert [process.exitcode for process in ranks] == [0] + [1] * (world_size - 1)
    finally:
        for process in ranks:
            process.kill()


def records_of(out: Path, case: int, world_size: int) -> list[dict[str, torch.Tensor]]:
    """What each rank ended with in the case of that number: gradient.*, weight.*, and what was kept on the way."""
    return [load_file(out / f"{case}.{rank}.safetensors") for rank in range(world_size)]


def named(records: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Of the records `<kind>.<parameter>`, by parameter."""
    return {name.removeprefix(f"{kind}."): t for name, t in records.items() if name.startswith(f"{kind}.")}


def _train_as_rank(
    rank: int, world_size: int, port: int, model_folder: Path, reference: Path, cases: Sequence[Case], out: Path
) -> None:
    environment = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    for number, case in enumerate(cases):
        policy = _make_policy(case, rank, world_size, model_folder, reference)
        _train(case, policy, rank)
        gradients = {f"gradient.{name}": g for name, g in gradients_of(policy).items()}
        weights = {f"weight.{name}": w for name, w in weights_of(policy).items()}
        records = dict(policy.records)
        if case.kept:
            restored = _make_policy(case, rank, world_size, model_folder, reference)
            records |= _keep_and_go_on(case, policy, restored, rank, out / str(number))
        save_file(records | gradients | weights, out / f"{number}.{rank}.safetensors")
    if rank == 0:
        Leader(policy).score(SCORED)
        os._exit(0)
    follow(policy)


def _make_policy(case: Case, rank: int, world_size: int, model_folder: Path, reference: Path) -> RecordingPolicy:
    return make_policy(
        model_folder,
        case.config(reference),
        case.dtype,
        kind=RecordingPolicy,
        rank=rank,
        world_size=world_size,
        local_rank=rank,
    )


def _train(case: Case, policy: RecordingPolicy, rank: int) -> None:
    """The first batch."""
    if rank > 0:
        follow(policy)
        return
    leader = Leader(policy)
    if leader.penalises_reward:
        leader.reference_penalty(case.batch)
    leader.train(case.batch)
    leader.stop()


def _keep_and_go_on(
    case: Case, policy: RecordingPolicy, restored: RecordingPolicy, rank: int, folder: Path
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
    restored.load(folder / "checkpoint", {"last_entropy": None})
    restored.train(case.second_batch)
    records["restored"] = restored.records["metrics"]
    return records
