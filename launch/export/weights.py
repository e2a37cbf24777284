"""A checkpoint's weights as a Hugging Face folder, without the learner: neither DeepSpeed nor a GPU is needed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from launch.model_writing import without_progress_bars
from learner.checkpoint import POLICY
from shared.errors import CheckpointError
from shared.pretrained import model_config

# What DeepSpeed calls the file with the whole weights, under ZeRO stages 0 to 2; the prefix is the learner's own.
_WEIGHTS_FILE = "mp_rank_00_model_states.pt"
_PREFIX = "causal_lm."


def save_weights(checkpoint: Path, architecture: Path, folder: Path) -> None:
    """Write config.json and safetensors into `folder`.

    architecture: a model folder with the same config.json. Raises CheckpointError for a file that is broken, or of
    which only a part is here.
    """
    import torch
    from transformers import AutoModelForCausalLM

    weights = _read(checkpoint / POLICY / _WEIGHTS_FILE)
    config = model_config(architecture)
    config.dtype = next(iter(weights.values())).dtype
    try:
        with torch.device("meta"):  # the weights take the place of these, which are never made
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint} is not of the model in {architecture}: {error}") from error
    model.tie_weights()
    with without_progress_bars():
        model.save_pretrained(folder)


def _read(path: Path) -> dict[str, Any]:
    """The weights by their names in a model folder."""
    import torch

    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parents[1]} is gone: a run that goes on keeps only its newest ones; try again")
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {_WEIGHTS_FILE}: under learner.zero_stage=3 a checkpoint has the weights in parts; "
            "resume the run and stop it (Ctrl-C once), which exports them, and leave --step out"
        )
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()  # torch does not check the sums
        if broken is not None:
            raise CheckpointError(f"{path} is broken (in {broken}): export another --step")
        # Tensors and plain data alone: nothing in the file is run.
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix(_PREFIX): tensor for name, tensor in state["module"].items()}
    except CheckpointError:
        raise
    except Exception as error:  # the library documents no closed list of what foreign files raise
        raise CheckpointError(f"{path} cannot be read: {error}; export another --step") from error
