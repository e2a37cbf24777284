"""restarts.jsonl: what was started again in a run, one object a line."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Self

from launch.supervisor import Restart
from shared.metrics import MetricsLog, cut_records


class RestartLog:
    """Appends to the file, over all starts of a run. Nothing is cut off when the learner goes back."""

    def __init__(self, path: Path) -> None:
        cut_records(path, lambda _: True)  # a line that a full disk has torn
        self._log = MetricsLog(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def write(self, restart: Restart) -> None:
        """Append one restart.

        time: of the decision, ISO 8601, UTC; number: as in `Restart`; delay_s: from then to the start; lineage:
        the run's from now on; version: what the learner goes on from, null for a rollout worker
        """
        self._log.write(
            {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                "process": restart.unit,
                "reason": restart.reason,
                "number": restart.number,
                "delay_s": restart.delay_s,
                "lineage": restart.origin.lineage,
                "version": restart.origin.version,
            }
        )
