"""vLLM's four-method weight-sync client, spoken over our stream to all rollout workers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learner.worker_pool import WorkerPool
from shared import messages as msg
from shared.errors import StreamTimeoutError, WeightSyncError, WorkerFailedError


class StreamWeightSyncClient:
    """Each call goes to every worker and returns when all have answered.

    Any refusal, failure or timeout is a WeightSyncError. Finishing also has each worker score the
    probe with its new weights; `finished` holds the answers, by worker.
    """

    def __init__(self, pool: WorkerPool, probe: Sequence[int], timeout_s: float) -> None:
        self._pool = pool
        self._probe = tuple(probe)
        self._timeout_s = timeout_s
        self.members: Sequence[object] = ()
        self.finished: dict[str, msg.UpdateFinished] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Prepare the transport on every worker."""
        self._call(msg.InitTransfer(init_info))

    def start_weight_update(self) -> None:
        """Begin an update on every worker."""
        self._call(msg.StartUpdate())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have every worker receive weights."""
        self._call(msg.UpdateWeights(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Make the weights live everywhere, as this version."""
        if weight_version is None:
            raise WeightSyncError("a weight update without a version")
        results = self._call(msg.FinishUpdate(int(weight_version), self._probe))
        self.finished = {name: result for name, result in results.items() if isinstance(result, msg.UpdateFinished)}
        if len(self.finished) != len(results):
            raise WeightSyncError("a worker finished the weight update without scoring the probe")

    def _call(self, request: msg.Request) -> Mapping[str, msg.Result]:
        try:
            return self._pool.call(request, self._timeout_s)
        except (WorkerFailedError, StreamTimeoutError) as error:
            raise WeightSyncError(f"weight sync failed at {type(request).__name__}: {error}") from error
