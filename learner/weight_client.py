"""vLLM's four-method weight-sync client, spoken over our stream to several rollout workers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learner.members import Member
from learner.worker_pool import WorkerPool
from shared import messages as msg
from shared.errors import WeightSyncError


class StreamWeightSyncClient:
    """Each call goes to every one of `members` and returns when all have answered or left.

    Who fails, refuses, or does not answer in time is sent away and leaves `members`; the others go on. With none left
    a call is a WeightSyncError. Finishing also has each worker score the probe with its new weights; `finished` holds
    the answers.
    """

    def __init__(self, pool: WorkerPool, probe: Sequence[int], timeout_s: float) -> None:
        self._pool = pool
        self._probe = tuple(probe)
        self._timeout_s = timeout_s
        self.members: list[Member] = []
        self.finished: dict[Member, msg.UpdateFinished] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Prepare the transport on every worker; each has a rank of its own where there are ranks."""
        infos = [dict(init_info) for _ in self.members]
        for position, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += position
        self._call({member: msg.InitTransfer(info) for member, info in zip(self.members, infos, strict=True)})

    def start_weight_update(self) -> None:
        """Begin an update on every worker."""
        self._call(dict.fromkeys(self.members, msg.StartUpdate()))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have every worker receive weights."""
        self._call(dict.fromkeys(self.members, msg.UpdateWeights(update_info)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Make the weights live everywhere, as this version."""
        if weight_version is None:
            raise WeightSyncError("a weight update without a version")
        self.finished = {}
        request = msg.FinishUpdate(int(weight_version), self._probe)
        results = self._call(dict.fromkeys(self.members, request))
        self.finished = {member: result for member, result in results.items() if isinstance(result, msg.UpdateFinished)}
        for member in results.keys() - self.finished.keys():
            self._pool.send_away(member, "it finished a weight update without scoring the probe")
        self._keep(self.finished, "FinishUpdate")

    def _call(self, requests: Mapping[Member, msg.Request]) -> Mapping[Member, msg.Result]:
        results = self._pool.call(requests, self._timeout_s)
        self._keep(results, " and ".join({type(request).__name__ for request in requests.values()}) or "a call")
        return results

    def _keep(self, answered: Mapping[Member, msg.Result], what: str) -> None:
        self.members = [member for member in self.members if member in answered]
        if not self.members:
            raise WeightSyncError(f"weight sync: no rollout worker is left after {what}{self._pool.last_loss()}")
