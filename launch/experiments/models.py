"""The warm-started models that runs begin with: one for each seed, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.experiments.plan import CONFIG, ROOT, model_folder
from launch.model_recipe import digest_of, recipe_digest
from shared.errors import ModelFolderError

RECIPE_FILE = ".recipe"
_LEARNED = ("model.safetensors", "tokenizer.json", "chat_template.jinja")
Execute = Callable[[Sequence[str], Path], int]


def ensure_model(out: Path, seed: int, execute: Execute) -> str:
    """Make the seed's model unless it is there, made by today's recipe; the SHA-256 of what runs read of it.

    `execute` runs `primezero` with arguments and a log file. Raises ModelFolderError when it fails.
    """
    folder = ROOT / model_folder(out, seed)
    recipe = recipe_digest()
    made_by = folder / RECIPE_FILE
    if not (made_by.is_file() and made_by.read_text() == recipe):
        if folder.exists():
            shutil.rmtree(folder)
        arguments = ["init-model", str(model_folder(out, seed)), "--config", str(CONFIG), f"--run.seed={seed}"]
        log = ROOT / out / f"{folder.name}.log"
        if execute(arguments, log) != 0:
            raise ModelFolderError(f"the model for seed {seed} was not made: see {log}")
        made_by.write_text(recipe)
    return digest_of([folder / name for name in _LEARNED])
