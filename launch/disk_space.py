"""Whether a run's files can fit at all, from the sizes of its model, before anything starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shared.config import Config
from shared.disk import free_bytes, size
from shared.errors import DiskError
from shared.weight_files import parameters

SHARED_MEMORY = Path("/dev/shm")
_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
# AdamW's two moments; and under bfloat16 the master copy of the weights, all in float32.
_MOMENTS, _MASTER = 8, 4
# What a run keeps under its folder that is as large as its model.
_LARGE = ("checkpoints", "model")


def check_disk(config: Config) -> None:
    """Raise DiskError, with the numbers, where the run's folder or shared memory plainly cannot hold what comes.

    Counted is what grows with the model alone: a run needs a little more than that, and never less.
    """
    count, item = parameters(config.model.path), _ITEM_BYTES[config.model.dtype]
    checkpoint = count * (item + _MOMENTS + (_MASTER if config.model.dtype == "bfloat16" else 0))
    kept = checkpoints_at_once(config)
    needed = count * item + kept * checkpoint
    there = sum(_stored(config.run_folder / name) for name in _LARGE)
    if needed > (free := free_bytes(config.run_folder)) + there:
        already = f", and {size(there)} are the run's own already" if there else ""
        raise DiskError(
            f"{size(needed)} are needed in {config.run_folder}: {size(count * item)} for the trained model and "
            f"{size(checkpoint)} for each of {kept} checkpoints, the one being written included; {size(free)} are "
            f"free{already}. Make room, put the run elsewhere with --run.folder, or lower --run.keep_checkpoints"
        )
    if config.transport == "shm" and count * item > (free := free_bytes(SHARED_MEMORY)):
        raise DiskError(
            f"the weights need {size(count * item)} in {SHARED_MEMORY}, where {size(free)} are free: make room, or "
            "enlarge it (in a container, with docker run --shm-size)"
        )


def checkpoints_at_once(config: Config) -> int:
    """Checkpoints that lie in the run's folder together: those kept, and beside them one that is being written."""
    every, steps = config.run.checkpoint_every, config.run.steps
    written = -(-steps // every) if every else 1
    return min(config.run.keep_checkpoints + 1, max(written, 1))


def _stored(folder: Path) -> int:
    """Bytes below a folder, as far as can be seen: it may be somebody else's, or of a run that is still going."""
    found = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                found += (Path(parent) / name).stat().st_size
    return found
