"""CPU time of a rollout worker's own work, by part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rollout.engine_requests
import rollout.selfplay
from rollout.worker import RolloutWorker


class Parts:
    """Seconds of the event loop's thread spent in each part. What of one part runs inside another counts twice."""

    names = ("prompts", "parsing", "records", "encoding")

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, worker: RolloutWorker) -> None:
        """Measure this worker's; for `Arms.worker`."""
        environment, chat = worker._environment, worker._chat
        for part, owner, name in (
            ("prompts", environment, "proposer_prompt"),
            ("prompts", environment, "solver_prompt"),
            ("prompts", chat, "prompt"),
            ("parsing", chat, "decode"),
            ("parsing", environment, "judge_proposal"),
            ("parsing", environment, "grade"),
            ("encoding", worker._session, "close"),
        ):
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    @contextmanager
    def records(self) -> Iterator[None]:
        """Measure too what turns vLLM's outputs into episodes, in all workers."""
        places = (
            (rollout.engine_requests, "piece_of"),
            (rollout.engine_requests, "joined"),
            (rollout.selfplay, "_episode"),
        )
        before = [(module, name, getattr(module, name)) for module, name in places]
        for module, name, function in before:
            setattr(module, name, self._timed("records", function))
        try:
            yield
        finally:
            for module, name, function in before:
                setattr(module, name, function)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[part] += time.thread_time() - begin

        return timed
