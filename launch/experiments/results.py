"""The kept data as a whole, and the numbers that the report draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from launch.experiments.data import DataError, EvaluationPoint, RunData, data_path, read_data
from launch.experiments.plan import Variant, planned_runs

FINAL_EVALUATIONS = 3
LONG_WINDOW = 5
LONG_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Results:
    """By variant's name and seed; what is not there has not been run."""

    runs: dict[tuple[str, int], RunData]

    def of(self, variant: Variant) -> list[RunData]:
        """The variant's runs that are there, by seed."""
        return [data for seed in variant.seeds if (data := self.runs.get((variant.name, seed))) is not None]

    def pairs(self, variant: Variant, baseline: Variant) -> list[tuple[RunData, RunData]]:
        """(variant's, baseline's) runs of the seeds that both have."""
        return [
            (data, other)
            for data in self.of(variant)
            if (other := self.runs.get((baseline.name, data.seed))) is not None
        ]


@dataclass(frozen=True, slots=True)
class Windows:
    """Means of consecutive evaluations, the untrained model's not counted: the best one and the last.

    best_steps: first and last step of the best window
    """

    best: float
    best_steps: tuple[int, int]
    last: float

    @property
    def kept(self) -> bool:
        """Whether what was learned is still there at the end."""
        return self.last >= self.best - LONG_TOLERANCE


def load_results(data_folder: Path) -> Results:
    """Everything in `data_folder` that the plan names.

    Raises DataError for a malformed file, one of another plan, or runs of a seed that began with different models.
    """
    paths = {run: data_path(data_folder, run) for run in planned_runs()}
    runs = {(run.variant.name, run.seed): read_data(path, run) for run, path in paths.items() if path.exists()}
    models: dict[int, RunData] = {}
    for data in runs.values():
        first = models.setdefault(data.seed, data)
        if data.model_sha256 != first.model_sha256:
            raise DataError(
                f"{data.variant}-{data.seed} and {first.variant}-{first.seed} began with different models and cannot "
                "be compared: run the older of them again"
            )
    return Results(runs)


def final_accuracy(data: RunData) -> float:
    """The mean of the last three evaluations."""
    return _mean(data.evaluations[-FINAL_EVALUATIONS:])


def mean_accuracy(data: RunData) -> float:
    """The mean of all evaluations, evenly spaced: the area under the curve, per step."""
    return _mean(data.evaluations)


def long_windows(data: RunData) -> Windows:
    """The best and the last five consecutive evaluations; the earliest where several are best."""
    trained = data.evaluations[1:]
    windows = [trained[i : i + LONG_WINDOW] for i in range(len(trained) - LONG_WINDOW + 1)]
    best = max(windows, key=_mean)
    return Windows(_mean(best), (best[0].step, best[-1].step), _mean(windows[-1]))


def _mean(evaluations: Sequence[EvaluationPoint]) -> float:
    return fmean(point.mean for point in evaluations)
