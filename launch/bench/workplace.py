"""Where a benchmark's runs lie, and the model that they train."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.bench.started_run import CONFIG
from launch.model_check import with_prompt_room
from shared.config import EnvironmentConfig
from shared.config_file import load_config
from shared.errors import ConfigError
from shared.model_folder import vocabulary_size
from shared.weight_files import parameters

TINY = "tiny"


@dataclass(slots=True)
class Workplace:
    """Where everything is.

    run: the run's own folder; model: its model folder; temporary: for sockets; output: what the run prints
    prompt_tokens: most that a prompt of this model has
    keep: set where something has gone wrong, and the files are the evidence
    """

    run: Path
    model: Path
    temporary: Path
    output: Path
    prompt_tokens: int
    keep: bool = False

    @property
    def settings(self) -> dict[str, object]:
        """Of the run, beside the demo's: its model, and what that needs."""
        return {"model.path": self.model, "sampling.max_prompt_tokens": self.prompt_tokens}

    def described(self) -> dict[str, Any]:
        """The model, for a report."""
        return {
            "name": self.model.name,
            "parameters": parameters(self.model),
            "vocabulary": vocabulary_size(self.model),
        }


@contextmanager
def workplace(folder: str, model: str, seed: int, say: Callable[[str], None]) -> Iterator[Workplace]:
    """The new folder `folder`, which stays; or, where that is "", one that stays only when something goes wrong.

    model: a model folder, or "tiny": the CPU demo's, made here of this seed
    """
    if folder and Path(folder).exists():
        raise ConfigError(f"--folder {folder} exists already: name another, which is made")
    config = load_config(CONFIG, [] if model == TINY else [f"--model.path={model}"])
    config = config if model == TINY else with_prompt_room(config)
    home = Path(folder or tempfile.mkdtemp(prefix="primezero-bench-")).resolve()
    home.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="pz"))
    made = home / TINY if model == TINY else Path(model).resolve()
    place = Workplace(home / "run", made, temporary, home / "output", config.sampling.max_prompt_tokens)
    try:
        if model == TINY:
            say("making the tiny model")
            _make_tiny(made, config.environment, seed)
        yield place
    except BaseException:
        place.keep = True
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder or place.keep:
            say(f"everything is in {home}")
        else:
            shutil.rmtree(home)


def _make_tiny(folder: Path, environment: EnvironmentConfig, seed: int) -> None:
    from launch.tiny_model import TinyModelSettings, make_tiny_model

    make_tiny_model(folder, environment, settings=TinyModelSettings(), seed=seed)
