"""Putting an exported model together: weights, tokenizer, generation defaults, prompts' settings, model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import tomli_w

from launch.evaluate import PROMPTS_FILE
from launch.export.model_card import model_card
from launch.export.source import Source, find_source
from launch.export.weights import save_weights
from launch.model_writing import make_readable
from launch.run_records import MODEL_FOLDER, RunRecords
from shared.config import Config
from shared.disk import reason
from shared.errors import ConfigError, ModelFolderError
from shared.model_folder import check_model_folder, copy_tokenizer


def export(run: RunRecords, config: Config, out: Path, step: int | None = None) -> Source:
    """Write the model of `step`, or the newest, to the new folder `out`: beside it first, then renamed into place.

    Raises PrimezeroError, saying what to do, when there is no such model or `out` cannot be written.
    """
    source = find_source(run, step)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already: remove it, or name another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _fill(unfinished, run, config, source)
            make_readable(unfinished)
            os.rename(unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot write the model to {out}: {reason(error)}; name another folder") from error
    return source


def prompt_settings(config: Config) -> str:
    """In TOML, what prompts and answers depend on: enough to evaluate the model and to play with it elsewhere."""
    chosen = {
        "model": {"dtype": config.model.dtype},
        "environment": config.environment.model_dump(mode="json"),
        "selfplay": {"references": config.selfplay.references},
        "sampling": config.sampling.model_dump(mode="json"),
    }
    return "# How this model was prompted in training; `primezero eval` and `play` read it.\n" + tomli_w.dumps(chosen)


def _fill(folder: Path, run: RunRecords, config: Config, source: Source) -> None:
    own = run.folder / MODEL_FOLDER
    if source.checkpoint is None:
        for path in own.iterdir():
            if path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json"):
                shutil.copyfile(path, folder / path.name)
        copy_tokenizer(own, folder)
    else:
        base = next((each for each in (config.model.path, own) if (each / "config.json").is_file()), None)
        if base is None:
            raise ModelFolderError(
                f"the model that the run began with, {config.model.path}, is gone: put it back, for its tokenizer and "
                "its config.json"
            )
        save_weights(source.checkpoint, base, folder)
        copy_tokenizer(base, folder)
    (folder / PROMPTS_FILE).write_text(prompt_settings(config), encoding="utf-8")
    (folder / "README.md").write_text(model_card(run, config, source.step), encoding="utf-8")
    check_model_folder(folder)
