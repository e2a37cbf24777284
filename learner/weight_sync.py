"""Bringing rollout workers to the learner's weights: all of them after an update, or those that have just come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict

from learner.members import Member
from learner.parity import check_parity
from learner.weight_client import StreamWeightSyncClient
from learner.weight_sender import SendStats, WeightSender
from learner.worker_pool import WorkerPool
from shared.episodes import Float32Array
from shared.errors import WeightSyncError

log = logging.getLogger(__name__)


class WeightSync:
    """Sends the policy's present weights and lets nobody work with them before the parity probe has passed.

    A worker that fails on the way leaves, and the others go on. What ends the run: weights that are not finite, and a
    probe that comes out differently, both WeightSyncError; and StreamTimeoutError when nobody is left and nobody
    comes back within `wait_s`.

    score: the learner's log-probabilities of the probe, with the weights that are sent
    tolerance: of the probe, nats
    """

    def __init__(
        self,
        pool: WorkerPool,
        client: StreamWeightSyncClient,
        sender: WeightSender,
        score: Callable[[], Float32Array],
        *,
        tolerance: float,
        wait_s: float,
    ) -> None:
        self._pool = pool
        self._client = client
        self._sender = sender
        self._score = score
        self._tolerance = tolerance
        self._wait_s = wait_s
        self._connected: frozenset[Member] = frozenset()

    @property
    def disturbs_others(self) -> bool:
        """Whether workers that have been synced before take part when newcomers are brought up."""
        return not self._sender.point_to_point

    def everyone(self, version: int) -> dict[str, object]:
        """Bring every worker, newcomers included, to `version`; what it took, for the record."""
        while True:
            self._pool.wait_for_workers(1, self._wait_s)
            stats = self._send(self._pool.members(), version)
            if stats is not None:
                differences = self._check(version)
                pause_s = max(finished.pause_s for finished in self._client.finished.values())
                return {**asdict(stats), "pause_s": pause_s, "probe_difference": max(differences)}

    def newcomers(self, version: int) -> None:
        """Bring up whoever has come, at `version`, which the policy's present weights are."""
        while new := self._pool.newcomers():
            members = self._pool.members() if self.disturbs_others else new
            if self._send(members, version) is not None:
                self._check(version)

    def close(self) -> None:
        """Remove what the transport holds. Nothing can be sent afterwards."""
        self._sender.close()

    def _send(self, members: Sequence[Member], version: int) -> SendStats | None:
        """None where members were lost and the transport gave up for it: to be tried again with those that are left."""
        self._pool.check_forwards(members, version)
        self._client.members = list(members)
        try:
            if frozenset(members) != self._connected:
                self._connected = frozenset()
                self._sender.connect()
                self._connected = frozenset(members)
            return self._sender.send(version)
        except WeightSyncError as error:
            if members and set(members) <= set(self._pool.members()):
                raise
            log.warning("sending weight version %d failed with its receivers: %s", version, error)
            self._connected = frozenset()
            return None

    def _check(self, version: int) -> list[float]:
        """The parity probe of all that have just finished; those pass."""
        ours = self._score()
        differences = [
            check_parity(ours, finished.probe_logprobs, worker=member.name, version=version, tolerance=self._tolerance)
            for member, finished in self._client.finished.items()
        ]
        self._pool.prove(self._client.finished, version)
        return differences
