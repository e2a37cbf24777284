"""What a run shows while it runs: a line per step and per evaluation, read from the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.config import Config


class Display:
    """Follows metrics.jsonl and evaluations.jsonl and prints what is new."""

    def __init__(self, config: Config, run_folder: Path) -> None:
        self._steps = config.run.steps
        self._metrics = _Follower(run_folder / "metrics.jsonl")
        self._evaluations = _Follower(run_folder / "evaluations.jsonl")
        self.say(f"run folder {run_folder}; starting Ray, the engine and the learner (about a minute)")

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, flush=True)

    def refresh(self) -> None:
        """Print what has been recorded since the last time."""
        for record in self._metrics.new():
            self.say(self._step_line(record))
        for record in self._evaluations.new():
            self.say(_evaluation_line(record))

    def _step_line(self, record: dict[str, Any]) -> str:
        tasks, learner, phases = record["tasks"].values(), record["learner"], record["phases"]
        valid = [t["valid"] for t in tasks if t["valid"] is not None]
        return (
            f"step {record['step']:>4}/{self._steps}  "
            f"solver {_mean([t['accuracy'] for t in tasks]):.2f}  "
            f"valid proposals {_mean(valid):.2f}  "
            f"entropy {learner['entropy']:.3f}  "
            f"staleness {record['staleness_mean']:.2f}  "
            f"{sum(phases.values()):.2f} s (waiting {phases.get('wait_s', 0):.2f})"
        )


class _Follower:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def new(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open() as file:
            file.seek(self._position)
            while (line := file.readline()).endswith("\n"):
                self._position = file.tell()
                yield json.loads(line)


def _evaluation_line(record: dict[str, Any]) -> str:
    tasks = "  ".join(f"{task} {result['accuracy']:.2f}" for task, result in record["tasks"].items())
    return f"     evaluation at version {record['version']}: accuracy {record['accuracy']:.3f}  ({tasks})"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
