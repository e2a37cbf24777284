"""The warm-started models that runs begin with: one for each seed, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from launch import model_recipe
from launch.experiments.plan import model_folder
from launch.model_recipe import CONFIG, ROOT
from shared.errors import ModelFolderError

_LEARNED = ("model.safetensors", "tokenizer.json", "chat_template.jinja")
Execute = Callable[[Sequence[str], Path], int]


def ensure_model(out: Path, seed: int, execute: Execute) -> str:
    """Make the seed's model unless it is there, made by today's recipe; the SHA-256 of what runs read of it.

    `execute` runs `primezero` with arguments and a log file. Raises ModelFolderError when it fails.
    """
    folder = ROOT / model_folder(out, seed)

    def make() -> None:
        arguments = ["init-model", str(model_folder(out, seed)), "--config", str(CONFIG), f"--run.seed={seed}"]
        log = ROOT / out / f"{folder.name}.log"
        if execute(arguments, log) != 0:
            raise ModelFolderError(f"the model for seed {seed} was not made: see {log}")

    model_recipe.ensure_model(folder, make)
    return model_recipe.digest_of([folder / name for name in _LEARNED])
