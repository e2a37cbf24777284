"""Runs what is missing of a plan, one run after the other; may be killed at any time and started again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from launch.experiments.data import (
    PROVENANCE_FILE,
    Provenance,
    RunData,
    command_line,
    condense,
    data_path,
    write_data,
)
from launch.experiments.models import Execute, ensure_model
from launch.experiments.plan import PlannedRun
from launch.experiments.processes import code_version, primezero
from launch.model_recipe import ROOT
from launch.run_folder import CONFIG_FILE
from shared.config import Config
from shared.config_file import load_config
from shared.errors import ConfigError
from shared.metrics import write_json


def run_plan(
    runs: Sequence[PlannedRun],
    out: Path,
    data_folder: Path,
    *,
    execute: Execute = primezero,
    say: Callable[[str], None] = print,
) -> list[PlannedRun]:
    """Train every run that is not finished, keep each one's data; the runs that failed.

    out: where runs are kept, relative to the repository's root or absolute
    execute: runs `primezero` with arguments and a log file, and returns the exit code
    Raises ConfigError before anything starts when a run's configuration is not usable.
    """
    for run in runs:
        run.config(out)
    failed = []
    for number, run in enumerate(runs, start=1):
        label = f"[{number:>2}/{len(runs)}] {run.name}:"
        model = ensure_model(out, run.seed, execute)
        if not (finished := is_finished(run, out, model)):
            say(f"{label} {run.variant.steps} steps; {_time_left(runs[number - 1 :], runs, out)}")
            if not _train(run, out, model, execute):
                say(f"{label} FAILED: see {_log(run, out)}")
                failed.append(run)
                continue
        data = condense(_folder(run, out), run)
        write_data(data_path(data_folder, run), data)
        say(f"{label} {'finished before' if finished else 'done'}: {_outcome(data)}")
    return failed


def is_finished(run: PlannedRun, out: Path, model_sha256: str) -> bool:
    """Whether the run's folder is that of this very run, from this model, and it went through all its steps."""
    provenance = _provenance(run, out)
    if provenance is None or provenance.model_sha256 != model_sha256:
        return False
    try:
        steps = json.loads((_folder(run, out) / "summary.json").read_text(encoding="utf-8"))["steps"]
        recorded = load_config(_folder(run, out) / CONFIG_FILE)
    except (OSError, ValueError, KeyError, ConfigError):
        # Half a run, or one of an earlier version of the configuration.
        return False
    return bool(steps == run.variant.steps) and _anchored(recorded) == _anchored(run.config(out))


def _train(run: PlannedRun, out: Path, model_sha256: str, execute: Execute) -> bool:
    """Whether it ended well; then, and only then, its folder says where it comes from."""
    arguments, commit, started = run.arguments(out), code_version(), time.monotonic()
    if execute(arguments, _log(run, out)) != 0:
        return False
    provenance = Provenance(command_line(arguments), commit, model_sha256, round(time.monotonic() - started, 1))
    write_json(_folder(run, out) / PROVENANCE_FILE, msgspec.to_builtins(provenance))
    return is_finished(run, out, model_sha256)


def _time_left(ahead: Sequence[PlannedRun], runs: Sequence[PlannedRun], out: Path) -> str:
    """From the seconds a step took in the runs that are finished; those ahead that are finished cost nothing."""
    done = {run: provenance for run in runs if (provenance := _provenance(run, out)) is not None}
    if not done:
        return "time left unknown"
    pace = sum(provenance.seconds for provenance in done.values()) / sum(run.variant.steps for run in done)
    minutes = round(sum(run.variant.steps for run in ahead if run not in done) * pace / 60)
    return f"about {minutes // 60} h {minutes % 60:02} min left"


def _outcome(data: RunData) -> str:
    first, last = data.evaluations[0].mean, data.evaluations[-1].mean
    return f"greedy accuracy {first:.3f} → {last:.3f} in {data.wall_s:.0f} s"


def _provenance(run: PlannedRun, out: Path) -> Provenance | None:
    try:
        return msgspec.json.decode((_folder(run, out) / PROVENANCE_FILE).read_bytes(), type=Provenance)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _folder(run: PlannedRun, out: Path) -> Path:
    return ROOT / out / run.name


def _log(run: PlannedRun, out: Path) -> Path:
    return ROOT / out / f"{run.name}.log"


def _anchored(config: Config) -> Config:
    """With paths from the repository's root made absolute: a run records its model's so."""
    model = config.model.model_copy(update={"path": (ROOT / config.model.path).resolve()})
    section = config.run.model_copy(update={"folder": (ROOT / config.run.folder).resolve()})
    return config.model_copy(update={"model": model, "run": section})
