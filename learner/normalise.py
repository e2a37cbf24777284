"""From a released batch to the rows that are trained: which they are, their advantages, their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.advantages import (
    Float64Array,
    RunningAdvantages,
    differences_from_group,
    members_of,
    task_relative_advantages,
)
from learner.batch import TrainingBatch
from learner.collector import Batch
from shared.config import Config
from shared.episodes import Episode, Role, Verdict
from shared.errors import CheckpointError, PrimezeroError


@dataclass(frozen=True, slots=True, eq=False)
class SelectedRows:
    """The R episodes of a batch that train, in ticket order. What is masked is not among them.

    version: the one that trains on them: the batch's number
    cells: the (task, role) that a row is normalised with; groups: its ticket for a solver's row, None for a proposal
    rewards, row_weights: float64 [R]
    """

    version: int
    episodes: Sequence[Episode]
    cells: Sequence[str]
    groups: Sequence[int | None]
    rewards: Float64Array
    row_weights: Float64Array

    def with_advantages(self, advantages: npt.NDArray[np.floating]) -> TrainingBatch:
        """The rows as tensors; advantages: [R]."""
        return TrainingBatch.from_episodes(self.episodes, advantages, self.row_weights, version=self.version)

    def unnormalised(self) -> TrainingBatch:
        """The rows as tensors for what is computed before the advantages, which are 0 here."""
        return self.with_advantages(np.zeros(len(self.episodes)))


class Normaliser:
    """Selects a batch's rows and normalises their rewards within each (task, role) cell over the whole batch.

    Batches must come in order: under the ema baseline each one moves the running statistics.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._advantage = config.learner.advantage
        self._running = RunningAdvantages(decay=self._advantage.ema_decay, std_floor=self._advantage.std_floor)

    def select(self, batch: Batch) -> SelectedRows:
        """The rows that train: a masked episode enters neither loss, nor denominators, nor any cell's statistics.

        Masked are held-out proposals, all proposals unless `selfplay.train_proposer`, and truncated responses under
        `learner.mask_truncated`. Raises PrimezeroError when nothing is left.
        """
        grouped = [(index, episode) for index, ticket in enumerate(batch.tickets) for episode in ticket.episodes]
        masked_for = [self._masked_for(episode) for _, episode in grouped]
        kept = [row for row, reason in zip(grouped, masked_for, strict=True) if reason is None]
        if not kept:
            raise PrimezeroError(_nothing_to_train(batch.number, Counter(filter(None, masked_for))))
        episodes = [episode for _, episode in kept]
        cells = [f"{e.role}/{e.task}" for e in episodes]
        rewards = np.array([e.reward for e in episodes], np.float64)
        if self._config.rewards.permute_within_cell:
            rewards = permute_within_cells(rewards, cells, seed=[self._config.run.seed, batch.number])
        solver = [e.role is Role.SOLVER for e in episodes]
        return SelectedRows(
            version=batch.number,
            episodes=episodes,
            cells=cells,
            groups=[index if solves else None for (index, _), solves in zip(kept, solver, strict=True)],
            rewards=rewards,
            row_weights=np.where(solver, self._config.solver_row_weight, 1.0),
        )

    def training_batch(
        self, rows: SelectedRows, reward_penalty: npt.NDArray[np.floating] | None = None
    ) -> TrainingBatch:
        """The rows with their advantages; reward_penalty: [R], taken off the rewards first (the k1 estimator)."""
        rewards = rows.rewards if reward_penalty is None else rows.rewards - reward_penalty
        by_token = self._advantage.length_weighted
        lengths = np.array([len(e.response_ids) for e in rows.episodes]) if by_token else None
        if self._advantage.baseline == "ema":
            return rows.with_advantages(self._running.advantages(rewards, rows.cells, lengths=lengths))
        if self._advantage.baseline == "group":
            rewards = differences_from_group(rewards, rows.groups, lengths=lengths)
        return rows.with_advantages(
            task_relative_advantages(rewards, rows.cells, lengths=lengths, std_floor=self._advantage.std_floor)
        )

    def state(self) -> dict[str, Any]:
        """What later batches depend on, as plain data: each cell's running mean and variance."""
        return {"cells": self._running.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned. Raises CheckpointError when it is something else."""
        if set(state) != {"cells"}:
            raise CheckpointError(f"the normaliser's state should hold cells alone, and holds {sorted(state)}")
        self._running.restore(state["cells"])

    def _masked_for(self, episode: Episode) -> str | None:
        if episode.role is Role.PROPOSER and not self._config.selfplay.train_proposer:
            return "proposals (selfplay.train_proposer=false)"
        if episode.verdict is Verdict.HELD_OUT:
            return "held-out proposals (environment.held_out)"
        if episode.truncated and self._config.learner.mask_truncated:
            return "cut responses (learner.mask_truncated=true)"
        return None


def permute_within_cells(rewards: Float64Array, cells: Sequence[str], *, seed: Sequence[int]) -> Float64Array:
    """The control: the same rewards in each cell, dealt to its episodes at random."""
    rng = np.random.default_rng(seed)
    permuted = rewards.copy()
    for members in members_of(cells).values():
        permuted[members] = rng.permutation(rewards[members])
    return permuted


def _nothing_to_train(number: int, reasons: Counter[str]) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return (
        f"nothing of batch {number} can be trained on, all its episodes are masked: {counts}. Where responses are cut, "
        "begin a run with more sampling.max_response_tokens or learner.mask_truncated=false; otherwise with "
        "selfplay.buffer_problems_per_task, whose attempts train"
    )
