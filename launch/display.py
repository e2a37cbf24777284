"""What a run shows while it runs: a line per step, evaluation and restart; the first two read from the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.run_folder import RunFolder
from launch.supervisor import Restart
from learner.progress import Summary
from shared.config import Config


class Display:
    """Follows metrics.jsonl and evaluations.jsonl and prints what is new."""

    def __init__(self, config: Config, run_folder: RunFolder) -> None:
        self._steps = config.run.steps
        self._metrics = _Follower(run_folder.path / "metrics.jsonl")
        self._evaluations = _Follower(run_folder.path / "evaluations.jsonl")
        if run_folder.resume_from is not None:
            self.say(f"resuming from {run_folder.resume_from}")
        self.say(f"run folder {run_folder.path}; starting Ray, the engine and the learner (about a minute)")

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, flush=True)

    def refresh(self) -> None:
        """Print what has been recorded since the last time."""
        for record in self._metrics.new():
            self.say(self._step_line(record))
        for record in self._evaluations.new():
            self.say(_evaluation_line(record))

    def restart(self, restart: Restart) -> None:
        """Print what ended, why, and what it goes on from."""
        self.refresh()
        origin = restart.origin
        start = f"step {origin.version}" if origin.version else "the beginning"
        goes_on = "" if origin.version is None else f" from {start}, lineage {origin.lineage}"
        when = f", in {restart.delay_s:g} s" if restart.delay_s else ""
        self.say(
            f"{restart.reason}; {restart.unit} is started again{goes_on}{when} "
            f"({restart.number} of at most {restart.limit} times in ten minutes)"
        )

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


def summary_lines(summary: Summary) -> list[str]:
    """What a run came to, for its end."""
    lines = [
        f"{summary.steps} steps, {summary.wall_s:.0f} s, {summary.episodes} episodes, "
        f"{summary.tokens_generated} tokens generated, {summary.weight_syncs} weight syncs, seed {summary.seed}",
        f"{'greedy accuracy':<16} before  after",
    ]
    for task, accuracy in summary.per_task.items():
        lines.append(f"{task:<16} {accuracy['before']:>6.3f} {accuracy['after']:>6.3f}")
    lines.append(
        f"{'mean':<16} {summary.accuracy_before:>6.3f} {summary.accuracy_after:>6.3f}"
        f"   (best {summary.accuracy_best:.3f})"
    )
    if summary.held_out_before is not None and summary.held_out_after is not None:
        lines.append(f"{'held out':<16} {summary.held_out_before:>6.3f} {summary.held_out_after:>6.3f}")
    return lines


class _Follower:
    """Reads what is appended to a file from here on; a resumed run first cuts off what it goes back behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def new(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        self._position = min(self._position, self._path.stat().st_size)
        with self._path.open() as file:
            file.seek(self._position)
            while (line := file.readline()).endswith("\n"):
                self._position = file.tell()
                yield json.loads(line)


def _evaluation_line(record: dict[str, Any]) -> str:
    tasks = "  ".join(f"{task} {result['accuracy']:.2f}" for task, result in record["tasks"].items())
    line = f"     evaluation at version {record['version']}: accuracy {record['accuracy']:.3f}  ({tasks})"
    held_out = record["held_out_accuracy"]
    return line if held_out is None else f"{line}  held out {held_out:.3f}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
