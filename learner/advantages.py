"""Task-relative REINFORCE++ advantages (REINFORCE++, arXiv 2501.03262; Absolute Zero, arXiv 2505.03335)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

EPSILON = 1e-6
SMALLEST_STD = 1e-4


def task_relative_advantages(
    rewards: npt.ArrayLike, cells: Sequence[Hashable] | npt.NDArray[np.integer], *, std_floor: float = 0.0
) -> npt.NDArray[np.float64]:
    """Rewards normalised within each cell (task type × role): A = (r − mean) / (std + ε).

    Every completion counts once; std is the sample standard deviation (ddof 1) and ε = 1e-6. Where a cell has
    fewer than two rows, or a spread below 1e-4, A = 0: there is nothing to prefer, only noise to divide by ε.

    rewards: [R]; cells: [R], equal values name the same cell
    std_floor: the least std to divide by; it bounds |A| where one reward stands out among many equal ones
    returns float64 [R]
    """
    reward_R = np.asarray(rewards, np.float64)
    if reward_R.ndim != 1 or len(reward_R) != len(cells):
        raise ValueError(f"rewards of shape {reward_R.shape} do not fit {len(cells)} cells")
    number: dict[Hashable, int] = {}
    cell_R = np.array([number.setdefault(cell, len(number)) for cell in cells], np.int64)
    advantage_R = np.zeros_like(reward_R)
    for cell in range(len(number)):
        members = cell_R == cell
        cell_rewards = reward_R[members]
        if len(cell_rewards) < 2:
            continue
        std = cell_rewards.std(ddof=1)
        if std >= SMALLEST_STD:
            advantage_R[members] = (cell_rewards - cell_rewards.mean()) / (max(std, std_floor) + EPSILON)
    return advantage_R
