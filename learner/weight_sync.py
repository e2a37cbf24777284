"""Bringing rollout workers to the learner's weights: all of them after an update, or those that have just come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from learner.members import Member
from learner.parity import ParityProbe, check_weights
from learner.weight_client import StreamWeightSyncClient
from learner.weight_sender import SendStats, WeightSender
from learner.worker_pool import WorkerPool
from shared.episodes import Float32Array
from shared.errors import WeightSyncError

log = logging.getLogger(__name__)


class WeightSync:
    """Sends the policy's present weights, and lets nobody work with them who has not been shown to have them.

    What needs the policy is done by `begin`; the rest goes on on a thread of its own, and `finish` waits for it. In
    between the policy may be trained, and nothing else is asked for here.

    A worker that fails on the way leaves, and the others go on. What ends the run: weights that are not finite, an
    engine with other weights than were sent, and a probe that comes out grossly differently, all WeightSyncError; and
    StreamTimeoutError when nobody is left and nobody comes back within `wait_s`.

    score: the learner's log-probabilities of the probe, with the weights that are sent
    tolerance: of the parity probe, nats
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
        self._probe = ParityProbe(tolerance)
        self._wait_s = wait_s
        self._connected: frozenset[Member] = frozenset()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weight-sync")
        self._under_way: Future[dict[str, Any] | None] | None = None

    @property
    def disturbs_others(self) -> bool:
        """Whether workers that have been synced before take part when newcomers are brought up."""
        return not self._sender.point_to_point

    @property
    def is_settled(self) -> bool:
        """Whether `finish` would return, or raise, at once."""
        return self._under_way is None or self._under_way.done()

    def everyone(self, version: int) -> dict[str, Any]:
        """Bring every worker, newcomers included, to `version`; what it took, for the record."""
        while True:
            self.begin(version)
            if (record := self.finish()) is not None:
                return record

    def begin(self, version: int) -> None:
        """Take the policy's present weights as `version`, and begin to bring every worker to them.

        The pool's attention is called when it is over, whatever has come of it.
        """
        self._pool.wait_for_workers(1, self._wait_s)
        self._begin(self._pool.members(), version)

    def finish(self) -> dict[str, Any] | None:
        """Wait for what `begin` began; what it took, for the record.

        None where members were lost and the transport gave up for it: to be tried again with those that are left.
        """
        under_way, self._under_way = self._under_way, None
        return None if under_way is None else under_way.result()

    def newcomers(self, version: int) -> None:
        """Bring up whoever has come, at `version`, which the policy's present weights are."""
        while new := self._pool.newcomers():
            self._begin(self._pool.members() if self.disturbs_others else new, version)
            self.finish()

    def close(self) -> None:
        """Remove what the transport holds. Nothing can be sent afterwards. The pool is to be closed before."""
        self._thread.shutdown()
        self._sender.close()

    def _begin(self, members: Sequence[Member], version: int) -> None:
        self._pool.check_forwards(members, version)
        self._client.members = list(members)
        try:
            if frozenset(members) != self._connected:
                self._connected = frozenset()
                self._sender.connect()
                self._connected = frozenset(members)
            send = self._sender.begin(version)
        except WeightSyncError as error:
            self._give_up(members, version, error)
            self._pool.call_attention()
            return
        ours: Future[Float32Array] = Future()
        self._under_way = self._thread.submit(self._bring_up, members, version, send, ours)
        self._under_way.add_done_callback(lambda _: self._pool.call_attention())
        try:
            ours.set_result(self._score())
        except BaseException as error:
            ours.set_exception(error)
            raise

    def _bring_up(
        self, members: Sequence[Member], version: int, send: Callable[[], SendStats], ours: Future[Float32Array]
    ) -> dict[str, Any] | None:
        try:
            stats = send()
        except WeightSyncError as error:
            self._give_up(members, version, error)
            return None
        finished = self._client.finished
        differences = self._check(ours.result(), version)
        return {
            **asdict(stats),
            "pause_s": max(answer.pause_s for answer in finished.values()),
            "probe_difference": max(differences),
            "probe_difference_first": max(map(self._probe.first, finished)),
        }

    def _give_up(self, members: Sequence[Member], version: int, error: WeightSyncError) -> None:
        """Raise `error` unless members were lost, which explains it."""
        if members and set(members) <= set(self._pool.members()):
            raise error
        log.warning("sending weight version %d failed with its receivers: %s", version, error)
        self._connected = frozenset()

    def _check(self, ours: Float32Array, version: int) -> list[float]:
        """Weights, and the parity probe, of all that have just finished; those pass."""
        differences = []
        for member, finished in self._client.finished.items():
            check_weights(self._sender.sums, finished.live, worker=member.name, version=version)
            differences.append(self._probe.check(member, ours, finished.probe_logprobs, version=version))
        self._pool.prove(self._client.finished, version)
        return differences
