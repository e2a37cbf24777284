"""The run's records: metrics.jsonl, evaluations.jsonl, summary.json."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from shared.config import Config
from shared.disk import writing
from shared.episodes import Evaluation
from shared.metrics import MetricsLog, cut_records, write_json


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to. Accuracies are greedy, unweighted means of the tasks, in [0, 1].

    accuracy_after: mean of the last `run.final_evaluations` evaluations
    accuracy_best: best mean of as many consecutive evaluations
    per_task: task → {"before", "after"}, averaged alike
    held_out_before, held_out_after: the same on problems that are never trained on; None where there are none
    wall_s: from the first batch's opening to the end
    """

    accuracy_before: float
    accuracy_after: float
    accuracy_best: float
    per_task: dict[str, dict[str, float]]
    held_out_before: float | None
    held_out_after: float | None
    steps: int
    wall_s: float
    episodes: int
    tokens_generated: int
    weight_syncs: int
    seed: int


class Progress:
    """Keeps the clock, the counts and the files of one run.

    A run resumed at a version goes on with what is on record up to it; what was recorded after it is cut off.
    """

    def __init__(self, config: Config, run_folder: Path, *, resumed_at: int = 0) -> None:
        self._config = config
        self._run_folder = run_folder

        def before(key: str) -> Callable[[dict[str, Any]], bool]:
            return lambda record: bool(record.get(key, math.inf) <= resumed_at)

        steps = cut_records(run_folder / "metrics.jsonl", before("step"))
        evaluations = cut_records(run_folder / "evaluations.jsonl", before("version"))
        self._metrics = MetricsLog(run_folder / "metrics.jsonl")
        self._evaluation_log = MetricsLog(run_folder / "evaluations.jsonl")
        self._evaluations = [msgspec.convert(record, Evaluation) for record in evaluations]
        self._wall_before: float = steps[-1]["wall_s"] if steps else 0.0
        self._started: float | None = None
        self._lap = time.monotonic()
        self._laps: dict[str, float] = {}
        self._episodes = self._tokens = 0
        for step in steps:
            self._count(step)
        first_sync = 1 if resumed_at else 0  # it belongs to no step
        self._syncs = first_sync + sum("sync" in step for step in steps)

    def needs_evaluation(self, version: int, *, final: bool) -> bool:
        """Whether a run that begins at `version`, and perhaps ends there, begins with an evaluation of it."""
        due = final or version % self._config.run.evaluate_every == 0
        return due and version not in {evaluation.version for evaluation in self._evaluations}

    def start_clock(self) -> None:
        """Training begins, or goes on."""
        self._started = self._lap = time.monotonic()

    def out_of_time(self) -> bool:
        """Whether `run.time_limit_s` has passed."""
        limit = self._config.run.time_limit_s
        return limit is not None and self._wall() >= limit

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to this phase of the step."""
        now = time.monotonic()
        self._laps[phase] = self._laps.get(phase, 0.0) + now - self._lap
        self._lap = now

    def synced(self) -> None:
        """One more weight sync."""
        self._syncs += 1

    def evaluated(self, evaluation: Evaluation) -> None:
        """Record an evaluation."""
        self._evaluations.append(evaluation)
        record = msgspec.to_builtins(evaluation) | {
            "accuracy": evaluation.accuracy,
            "held_out_accuracy": evaluation.held_out_accuracy,
            "wall_s": self._wall(),
        }
        self._evaluation_log.write(record)

    def step(self, version: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What there is to record of a trained batch, which has just made `version`."""
        self._count(metrics)
        phases, self._laps = self._laps, {}
        return {"step": version, "wall_s": self._wall(), **metrics, "phases": phases}

    def record(self, step: Mapping[str, Any]) -> None:
        """Write down what `step` returned, and perhaps more; steps in their order."""
        self._metrics.write(step)

    def summarise(self, steps: int) -> Summary:
        """Write summary.json and return it."""
        before, trained = self._evaluations[0], self._evaluations[1:] or self._evaluations
        window = min(self._config.run.final_evaluations, len(trained))
        windows = [trained[i : i + window] for i in range(len(trained) - window + 1)]
        after = windows[-1]
        summary = Summary(
            accuracy_before=before.accuracy,
            accuracy_after=_mean([e.accuracy for e in after]),
            accuracy_best=max(_mean([e.accuracy for e in w]) for w in windows),
            per_task={
                task: {"before": result.accuracy, "after": _mean([e.tasks[task].accuracy for e in after])}
                for task, result in before.tasks.items()
            },
            held_out_before=before.held_out_accuracy,
            held_out_after=_mean_or_none([e.held_out_accuracy for e in after]),
            steps=steps,
            wall_s=self._wall(),
            episodes=self._episodes,
            tokens_generated=self._tokens,
            weight_syncs=self._syncs,
            seed=self._config.run.seed,
        )
        with writing(self._run_folder / "summary.json"):
            write_json(self._run_folder / "summary.json", asdict(summary))
        return summary

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._evaluation_log.close()

    def _count(self, metrics: Mapping[str, Any]) -> None:
        self._episodes += metrics["episodes"] + metrics["untrained_episodes"]
        self._tokens += metrics["response_tokens"] + metrics["untrained_tokens"]

    def _wall(self) -> float:
        """Seconds of training, those before the run was resumed included."""
        return self._wall_before + (0.0 if self._started is None else time.monotonic() - self._started)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
