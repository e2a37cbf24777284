"""The parity probe: right after a sync, the engine's log-probabilities must be the learner's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.episodes import Float32Array
from shared.errors import WeightSyncError


def check_parity(
    learner: Float32Array, engine: Sequence[float], *, worker: str, version: int, tolerance: float
) -> float:
    """The mean absolute difference in nats over the probe's tokens.

    The mean, since the kernels of two programs round differently: in bfloat16 the largest difference grows with the
    model and with the number of tokens, the mean hardly; and weights that were not updated are off at every token.

    learner, engine: log-probability of each probe token but the first, [tokens - 1]
    Raises WeightSyncError when it exceeds `tolerance` or is not a number.
    """
    theirs = np.asarray(engine, dtype=np.float32)
    if theirs.shape != learner.shape:
        raise WeightSyncError(f"weight sync: {worker} scored {len(theirs)} probe tokens, not {len(learner)}")
    difference = float(np.abs(theirs - learner).mean())
    if not difference <= tolerance:
        raise WeightSyncError(
            f"weight sync left worker {worker} with other weights than the learner at version {version}: "
            f"log-probabilities of the probe differ by {difference:.3g} nats on average, tolerance {tolerance:.3g} "
            "(sync.probe_tolerance). Training on would be silent garbage; docs/troubleshooting.md says where to look"
        )
    return difference
