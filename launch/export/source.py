"""What of a run is exported: the model that it ended with, or one of its checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launch.run_folder import CHECKPOINTS
from launch.run_records import MODEL_FOLDER, RunRecords, number
from shared.errors import CheckpointError

_NAME = re.compile(r"step-([0-9]{6,})")


@dataclass(frozen=True, slots=True)
class Source:
    """step: training steps behind the weights; checkpoint: where they are, None for the run's own model/"""

    step: int
    checkpoint: Path | None


def find_source(run: RunRecords, step: int | None) -> Source:
    """The model of `step`, or the newest that there is. Raises CheckpointError, saying which there are."""
    found, final = _checkpoints(run.folder), _final(run)
    if final is not None and step in (None, final):
        return Source(final, None)
    chosen = max(found, default=None) if step is None else step
    if chosen is None or chosen not in found:
        steps = ", ".join(map(str, sorted({*found, *([] if final is None else [final])})))
        which = "no model yet" if step is None else f"no checkpoint of step {step}"
        there = f"it has those of {steps}" if steps else "its first checkpoint is still to come (run.checkpoint_every)"
        raise CheckpointError(f"{run.folder} has {which}: {there}")
    return Source(chosen, found[chosen])


def _final(run: RunRecords) -> int | None:
    """The step of the model that the run ended with; None where it has not ended, or that model is gone."""
    if run.summary is None or not (run.folder / MODEL_FOLDER / "config.json").is_file():
        return None
    return int(number(run.summary, "steps") or 0)


def _checkpoints(folder: Path) -> dict[int, Path]:
    """By the step that they were made after."""
    matches = ((_NAME.fullmatch(path.name), path) for path in (folder / CHECKPOINTS).glob("step-*"))
    return {int(match[1]): path for match, path in matches if match is not None}
