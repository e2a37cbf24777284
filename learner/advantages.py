"""Task-relative REINFORCE++ advantages (REINFORCE++, arXiv 2501.03262; Absolute Zero, arXiv 2505.03335).

A cell is a task type × role; every cell is normalised by itself. Where a cell's spread is below 1e-4 all its
advantages are 0: there is nothing to prefer, only noise to divide by ε.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence, Sized
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from shared.errors import CheckpointError

EPSILON = 1e-6
TOKEN_EPSILON = 1e-8
SMALLEST_STD = 1e-4

Float64Array = npt.NDArray[np.float64]
Label = TypeVar("Label", bound=Hashable)


class Moments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mean and variance of a cell's rewards."""

    mean: float
    variance: float


def task_relative_advantages(
    rewards: npt.ArrayLike,
    cells: Sequence[Hashable] | npt.NDArray[np.integer],
    *,
    lengths: npt.ArrayLike | None = None,
    std_floor: float = 0.0,
) -> Float64Array:
    """Rewards normalised within each cell: A = (r − mean) / (std + ε).

    Every completion counts once; std is the sample standard deviation (ddof 1) and ε = 1e-6. A cell of one row has
    no spread.

    rewards: [R]; cells: [R], equal values name the same cell
    lengths: [R], response tokens: then every token counts once instead, as in the reference code's masked
        whitening: A = (r − mean) / √(variance + 1e-8), where the variance of N tokens has the factor N / (N − 1)
    std_floor: the least std to divide by; it bounds |A| where one reward stands out among many equal ones
    returns float64 [R]
    """
    reward_R, sample_R = _aligned(rewards, cells, lengths)
    advantage_R = np.zeros_like(reward_R)
    for members in members_of(cells).values():
        own = _moments(reward_R[members], sample_R[members])
        advantage_R[members] = _normalised(reward_R[members], own, std_floor, by_token=lengths is not None)
    return advantage_R


def differences_from_group(
    rewards: npt.ArrayLike, groups: Sequence[int | None], *, lengths: npt.ArrayLike | None = None
) -> Float64Array:
    """The group baseline: each reward less the mean of its group; without a group (None), the reward itself.

    A group of one differs by 0 from itself. Within a cell that is made of whole groups the differences have the
    mean 0, so that `task_relative_advantages` divides them by their standard deviation and does nothing else.

    lengths: [R], response tokens: then a group's mean is over them
    returns float64 [R]
    """
    reward_R, sample_R = _aligned(rewards, groups, lengths)
    for group, members in members_of(groups).items():
        if group is not None:
            reward_R[members] -= _moments(reward_R[members], sample_R[members]).mean
    return reward_R


class RunningAdvantages:
    """The ema baseline: advantages against each cell's running mean and variance, read before they are updated.

    A cell starts with the moments of its first batch that has a spread, and that batch is normalised by them; up
    to then its advantages are 0. Later batches are normalised by the running moments whatever their own spread, so
    that even equal rewards teach, and then move them: running ← decay · running + (1 − decay) · own. A batch with
    one row of the cell has no variance, and moves the mean alone.
    """

    def __init__(self, *, decay: float, std_floor: float = 0.0) -> None:
        self._decay = decay
        self._std_floor = std_floor
        self._running: dict[str, Moments] = {}

    def advantages(
        self, rewards: npt.ArrayLike, cells: Sequence[str], *, lengths: npt.ArrayLike | None = None
    ) -> Float64Array:
        """One batch's advantages, float64 [R], as in `task_relative_advantages` but for the moments; updates these."""
        reward_R, sample_R = _aligned(rewards, cells, lengths)
        advantage_R = np.zeros_like(reward_R)
        for cell, members in members_of(cells).items():
            own = _moments(reward_R[members], sample_R[members])
            running = self._running.get(cell, own)
            advantage_R[members] = _normalised(
                reward_R[members], running, self._std_floor, by_token=lengths is not None
            )
            if cell in self._running or _has_spread(own):
                self._running[cell] = self._moved(running, own, rows=len(members))
        return advantage_R

    def state(self) -> dict[str, dict[str, float]]:
        """The running moments of every cell as plain data."""
        return {cell: msgspec.to_builtins(moments) for cell, moments in self._running.items()}

    def restore(self, state: object) -> None:
        """Go on from what `state` returned. Raises CheckpointError when it is something else."""
        try:
            running = msgspec.convert(state, dict[str, Moments])
        except msgspec.ValidationError as error:
            raise CheckpointError(f"the running reward statistics cannot be restored: {error}") from error
        for cell, m in running.items():
            if not (math.isfinite(m.mean) and math.isfinite(m.variance) and m.variance >= 0):
                raise CheckpointError(f"the running reward statistics of {cell} cannot be restored: {m}")
        self._running = running

    def _moved(self, running: Moments, own: Moments, rows: int) -> Moments:
        def moved(old: float, value: float) -> float:
            return self._decay * old + (1 - self._decay) * value

        variance = moved(running.variance, own.variance) if rows > 1 else running.variance
        return Moments(moved(running.mean, own.mean), variance)


def members_of(labels: Iterable[Label]) -> dict[Label, list[int]]:
    """The rows of each cell or group, in order of appearance."""
    rows: defaultdict[Label, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    return rows


def _moments(reward_C: Float64Array, sample_C: Float64Array) -> Moments:
    """Of one cell or group whose row i counts as `sample_C[i]` equal samples."""
    samples = sample_C.sum()
    mean = sample_C @ reward_C / samples
    squares = sample_C @ np.square(reward_C - mean)
    return Moments(float(mean), float(squares / (samples - 1)) if len(reward_C) > 1 else 0.0)


def _normalised(reward_C: Float64Array, moments: Moments, std_floor: float, *, by_token: bool) -> Float64Array:
    if not _has_spread(moments):
        return np.zeros_like(reward_C)
    if by_token:
        divisor = max(math.sqrt(moments.variance + TOKEN_EPSILON), std_floor)
    else:
        divisor = max(math.sqrt(moments.variance), std_floor) + EPSILON
    return (reward_C - moments.mean) / divisor


def _has_spread(moments: Moments) -> bool:
    return math.sqrt(moments.variance) >= SMALLEST_STD


def _aligned(rewards: npt.ArrayLike, labels: Sized, lengths: npt.ArrayLike | None) -> tuple[Float64Array, Float64Array]:
    """A copy of the rewards, and how many samples each row counts as."""
    reward_R = np.array(rewards, np.float64)
    sample_R = np.ones_like(reward_R) if lengths is None else np.array(lengths, np.float64)
    if reward_R.ndim != 1 or len(reward_R) != len(labels) or reward_R.shape != sample_R.shape:
        raise ValueError(
            f"rewards of shape {reward_R.shape} do not fit {len(labels)} rows with lengths of shape {sample_R.shape}"
        )
    return reward_R, sample_R
