"""From a released batch to the rows that are trained: cells, advantages, row weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from learner.advantages import task_relative_advantages
from learner.batch import TrainingBatch
from learner.collector import Batch
from shared.config import Config
from shared.episodes import Episode, Role, Task


def normalise(batch: Batch, config: Config) -> TrainingBatch:
    """Rows in ticket order, advantages normalised within each (task, role) cell over the whole batch."""
    episodes = batch.episodes
    cells = [(e.task, e.role) for e in episodes]
    rewards = np.array([e.reward for e in episodes])
    if config.rewards.permute_within_cell:
        rewards = permute_within_cells(rewards, cells, seed=[config.run.seed, batch.number])
    return TrainingBatch.from_episodes(
        episodes,
        advantages=task_relative_advantages(rewards, cells, std_floor=config.learner.std_floor),
        row_weights=np.array([_row_weight(e, config) for e in episodes]),
    )


def permute_within_cells(rewards: np.ndarray, cells: Sequence[tuple[Task, Role]], *, seed: list[int]) -> np.ndarray:
    """The control: the same rewards in each cell, dealt to its episodes at random."""
    rows: defaultdict[tuple[Task, Role], list[int]] = defaultdict(list)
    for row, cell in enumerate(cells):
        rows[cell].append(row)
    rng = np.random.default_rng(seed)
    permuted = rewards.copy()
    for members in rows.values():
        permuted[members] = rng.permutation(rewards[members])
    return permuted


def _row_weight(episode: Episode, config: Config) -> float:
    return config.solver_row_weight if episode.role is Role.SOLVER else 1.0
