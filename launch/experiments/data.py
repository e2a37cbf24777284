"""What is kept of a finished run: one small file in docs/learning/data, enough for the report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import msgspec

from launch.experiments.plan import EVALUATE_EVERY, PlannedRun
from shared.errors import PrimezeroError

WINDOW = 10
PROVENANCE_FILE = "experiment.json"
Series = list[float | None]
Record = dict[str, Any]


class _TaskValue(Protocol):
    def __call__(self, record: Record, task: str) -> float | None: ...


class DataError(PrimezeroError):
    """A run's records or kept data are malformed, or are not of the run that is planned."""


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a finished run comes from; written into its folder when it has ended well.

    model_sha256: of the model it started from; seconds: of the whole process, starting and ending included
    """

    command: str
    commit: str
    model_sha256: str
    seconds: float


class EvaluationPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Greedy accuracy by task, in [0, 1], after `step` steps."""

    step: int
    accuracy: dict[str, float]

    @property
    def mean(self) -> float:
        """The unweighted mean of the tasks."""
        return fmean(self.accuracy.values())


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Means over windows of ten steps; `step` is each window's last. None: nothing was there to be measured.

    entropy: nats a token; mismatch: |difference| of sampler's and learner's log-probabilities, nats a token;
    staleness: versions. By task, means over batches: valid, the share of proposals that are valid; distinct, problems
    proposed; proposer_reward; solver_accuracy, the sampled attempts' solve rate.
    """

    step: list[int]
    entropy: Series
    mismatch: Series
    staleness: Series
    valid: dict[str, Series]
    distinct: dict[str, Series]
    proposer_reward: dict[str, Series]
    solver_accuracy: dict[str, Series]


class RunData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finished run, condensed. wall_s: seconds of training and evaluation, starting not included."""

    variant: str
    seed: int
    overrides: list[str]
    command: str
    commit: str
    model_sha256: str
    steps: int
    wall_s: float
    episodes: int
    evaluations: list[EvaluationPoint]
    health: Health


def condense(run_folder: Path, run: PlannedRun) -> RunData:
    """Read a finished run's records. Raises DataError where they are not those of a whole run."""
    try:
        provenance = msgspec.json.decode((run_folder / PROVENANCE_FILE).read_bytes(), type=Provenance)
        summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
        metrics, evaluations = (_lines(run_folder / f"{name}.jsonl") for name in ("metrics", "evaluations"))
        data = RunData(
            variant=run.variant.name,
            seed=run.seed,
            overrides=list(run.variant.overrides),
            command=provenance.command,
            commit=provenance.commit,
            model_sha256=provenance.model_sha256,
            steps=summary["steps"],
            wall_s=round(summary["wall_s"], 1),
            episodes=summary["episodes"],
            evaluations=[_evaluation(record) for record in evaluations],
            health=_health(metrics),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the records in {run_folder} are not those of a finished run: {error!r}") from error
    _check(data, run, run_folder)
    return data


def command_line(arguments: Sequence[str]) -> str:
    """The command that a user would type."""
    return shlex.join(["primezero", *arguments])


def data_path(folder: Path, run: PlannedRun) -> Path:
    """Where a run's data is kept."""
    return folder / f"{run.name}.json"


def write_data(path: Path, data: RunData) -> None:
    """One line for each field, so that changes can be read."""
    fields = msgspec.to_builtins(data)
    health = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.pop("health").items())
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join([*lines, f' "health": {{\n{health}\n }}']) + "\n}\n", encoding="utf-8")


def read_data(path: Path, run: PlannedRun) -> RunData:
    """Raises DataError when the file is malformed, or of a run that is not the planned one."""
    try:
        data = msgspec.json.decode(path.read_bytes(), type=RunData)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} is not a run's data: {error}") from error
    _check(data, run, path)
    return data


def _check(data: RunData, run: PlannedRun, source: Path) -> None:
    found = (data.variant, data.seed, data.steps, tuple(data.overrides), [point.step for point in data.evaluations])
    steps = run.variant.steps
    planned = (run.variant.name, run.seed, steps, run.variant.overrides, list(range(0, steps + 1, EVALUATE_EVERY)))
    if found != planned:
        raise DataError(f"{source} is not of the planned run {run.name}: found {found}; remove it, or run it again")


def _lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _evaluation(record: Record) -> EvaluationPoint:
    accuracy = {task: round(result["accuracy"], 6) for task, result in record["tasks"].items()}
    return EvaluationPoint(record["version"], accuracy)


def _health(metrics: list[Record]) -> Health:
    windows = [metrics[start : start + WINDOW] for start in range(0, len(metrics), WINDOW)]

    def means(value: Callable[[Record], float | None]) -> Series:
        return [_mean([value(record) for record in window]) for window in windows]

    def by_task(value: _TaskValue) -> dict[str, Series]:
        return {task: means(partial(value, task=task)) for task in sorted(metrics[0]["tasks"])}

    return Health(
        step=[window[-1]["step"] for window in windows],
        entropy=means(lambda record: record["learner"]["entropy"]),
        mismatch=means(lambda record: record["learner"]["mismatch_mean"]),
        staleness=means(lambda record: record["staleness_mean"]),
        valid=by_task(lambda record, task: record["tasks"][task]["valid"]),
        distinct=by_task(lambda record, task: record["tasks"][task]["distinct"]),
        # Without trained proposals there is no such cell.
        proposer_reward=by_task(lambda record, task: record["cells"].get(f"proposer/{task}", {}).get("reward")),
        solver_accuracy=by_task(lambda record, task: record["tasks"][task]["accuracy"]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """To five digits; None where no value is there."""
    present = [value for value in values if value is not None]
    return float(f"{fmean(present):.5g}") if present else None
