"""The evaluation under way: on one worker, beside training, and on another when that one leaves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from learner.worker_pool import WorkerPool
from shared import messages as msg
from shared.episodes import Evaluation
from shared.errors import StreamTimeoutError

log = logging.getLogger(__name__)


class Evaluations:
    """Has one weight version at a time evaluated.

    A worker has a version only until the next sync, and the learner only until its next update. So an evaluation whose
    worker leaves goes to another that has the version, or to a newcomer while the learner still has it; otherwise it
    is `owed`, and the next version that is synced is to be evaluated in its place.

    record: takes what comes of it; timeout_s: limit for an evaluation, all attempts together
    """

    def __init__(self, pool: WorkerPool, record: Callable[[Evaluation], None], timeout_s: float) -> None:
        self._pool = pool
        self._record = record
        self._timeout_s = timeout_s
        self._call: int | None = None
        self.version: int | None = None
        self.owed = False

    def start(self, version: int) -> None:
        """Have `version`, which every worker has just been brought to, evaluated by one of them."""
        self.version, self.owed = version, False
        self._call_a_worker()

    def attend(self, policy_version: int) -> None:
        """If the worker has left, find another."""
        if self._call is not None and self._pool.is_settled(self._call):
            self._take()
        if self.version is not None and self._call is None:
            self._move(policy_version)

    def finish(self, policy_version: int, attend: Callable[[], None]) -> None:
        """Until there is no evaluation under way; `attend` brings newcomers up.

        Raises StreamTimeoutError when it takes too long.
        """
        deadline = time.monotonic() + self._timeout_s
        while self.version is not None:
            left_s = max(0.0, deadline - time.monotonic())
            if self._call is not None:
                self._take(left_s, attend)
            elif not self._move(policy_version) and self.version is not None:
                self._pool.wait_for_newcomer(left_s)
                attend()
            if self.version is not None and time.monotonic() >= deadline:
                raise StreamTimeoutError(
                    f"the evaluation of version {self.version} was not done within rollout.evaluation_timeout_s = "
                    f"{self._timeout_s:g} s{self._pool.last_loss()}; see logs/rollout-*.log"
                )

    def _take(self, timeout_s: float = 0.0, attend: Callable[[], None] | None = None) -> None:
        """Wait for the call's end; the evaluation is done if the worker said so."""
        assert self._call is not None
        results = self._pool.finish_call(self._call, timeout_s, attend)
        self._call = None
        for member, result in results.items():
            if isinstance(result, msg.Evaluated) and result.evaluation.version == self.version:
                self.version = None
                self._record(result.evaluation)
            else:
                self._pool.send_away(member, f"asked to evaluate version {self.version}, it did something else")

    def _move(self, policy_version: int) -> bool:
        """Whether another worker has been found; where none ever will be, the evaluation is owed instead."""
        self._call_a_worker()
        if self._call is None and policy_version != self.version:
            log.warning("no worker has version %s any more: a later one will be evaluated in its place", self.version)
            self.version, self.owed = None, True
        return self._call is not None

    def _call_a_worker(self) -> None:
        assert self.version is not None
        for member in self._pool.ready(self.version)[:1]:
            log.info("rollout worker %s evaluates version %d", member.name, self.version)
            self._call = self._pool.start_call({member: msg.Evaluate(self.version)})
