"""Right after a sync: the engine has the learner's weights to the bit, and computes with them what the learner does."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from learner.members import Member
from shared.episodes import Float32Array
from shared.errors import WeightSyncError
from shared.weight_wire import LiveWeights, Sums

log = logging.getLogger(__name__)

# Of the difference after a worker's first sync: what is told, and what stops a run.
_DRIFT = 3
_GROSS = 10
# Of the tolerance: smaller differences are not worth a word.
_NOTEWORTHY = 0.01


def check_weights(sent: Mapping[str, Sums], live: Sequence[LiveWeights], *, worker: str, version: int) -> None:
    """Raise WeightSyncError unless an engine computes with exactly the weights that were sent, in every place.

    sent: of each parameter by name; live: of each place of the engine's model, which may fuse several (queries, keys
    and values), and have several copies of them (a look-up and an output head on one matrix)
    """
    named = [name for place in live for name in place.names]
    if sorted(named) != sorted(sent):
        odd = min({*named} ^ {*sent}, default="one twice")
        raise WeightSyncError(f"worker {worker} accounts for other weights than were sent to it, such as {odd}")
    stale = [place for place in live if any(sums != _together(sent, place.names) for sums in place.sums)]
    if stale:
        raise WeightSyncError(
            f"weight sync left worker {worker} with other weights than the learner at version {version}: "
            f"{len(stale)} of {len(live)} layers, among them {' + '.join(stale[0].names)}, do not have the bits that "
            "were sent. Training on would be silent garbage; docs/troubleshooting.md says where to look"
        )


def _together(sent: Mapping[str, Sums], names: Sequence[str]) -> Sums:
    return sum(sent[name][0] for name in names), sum(sent[name][1] for name in names)


class ParityProbe:
    """How far each worker's log-probabilities of the probe are from the learner's, with the same weights.

    Two programs round differently, by what follows from model, dtype and weights; so a worker's difference is judged
    by that after its first sync. Beyond three times as much is told; more than `tolerance`, and ten times as much, is
    no rounding.

    tolerance: nats, on average over the probe's tokens
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._first: dict[Member, float] = {}
        self._told: dict[Member, float] = {}

    def first(self, member: Member) -> float:
        """The difference after the worker's first sync, nats."""
        return self._first[member]

    def check(self, member: Member, learner: Float32Array, engine: Sequence[float], *, version: int) -> float:
        """The mean absolute difference in nats over the probe's tokens.

        The mean, since the largest grows with the number of tokens.

        learner, engine: log-probability of each probe token but the first, [tokens - 1]
        Raises WeightSyncError when it is gross, or not a number.
        """
        theirs = np.asarray(engine, dtype=np.float32)
        if theirs.shape != learner.shape:
            raise WeightSyncError(f"weight sync: {member.name} scored {len(theirs)} probe tokens, not {len(learner)}")
        difference = float(np.abs(theirs - learner).mean())
        first = self._first.get(member, 0.0)
        if not difference <= max(self._tolerance, _GROSS * first):
            after = f"{first:.3g} after its first sync, " if member in self._first else ""
            raise WeightSyncError(
                f"worker {member.name} has the learner's weights of version {version} and computes something else with "
                f"them: log-probabilities of the probe differ by {difference:.3g} nats on average, {after}tolerance "
                f"{self._tolerance:.3g} (sync.probe_tolerance). Training on would be silent garbage; "
                "docs/troubleshooting.md says where to look"
            )
        self._first.setdefault(member, difference)
        if difference > max(_NOTEWORTHY * self._tolerance, _DRIFT * self._told.get(member, self._first[member])):
            self._told[member] = difference
            log.warning(
                "worker %s and the learner drift apart: %.3g nats on average over the probe at version %d, %.3g after "
                "its first sync. The weights are the same; see docs/troubleshooting.md",
                member.name,
                difference,
                version,
                self._first[member],
            )
        return difference
