"""A model folder's config.json: whether the model is one that can be trained, and what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import ModelFolderError

# Known to both the engine and the learner, under the same parameter names, each with a weight sync behind it.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_MAX_BYTES = 2**28


def check_config(folder: Path) -> int:
    """Raise ModelFolderError, with the reason, unless it is a model that can be trained; its vocabulary's size."""
    path = folder / "config.json"
    config = read_object(path)
    if config.get("auto_map"):
        raise ModelFolderError(
            f"{path} has the model built by code of its own (auto_map), and code of a model folder is never run: use a "
            f"model of a built-in architecture, {_listed(ARCHITECTURES)}"
        )
    named = config.get("architectures")
    named = named if isinstance(named, list) else []
    if not any(name in ARCHITECTURES for name in named):
        raise ModelFolderError(
            f"{path} names the architecture {_listed(map(str, named)) or 'none'}, which is not supported: it must be "
            f"a causal language model of {_listed(ARCHITECTURES)}"
        )
    if config.get("quantization_config"):
        raise ModelFolderError(f"the model in {folder} is quantized, and cannot be trained: use one that is not")
    if _slides(config):
        raise ModelFolderError(f"{path} has a sliding window, which the learner does not support: use another model")
    vocabulary = config.get("vocab_size")
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise ModelFolderError(f"{path} does not say how large the vocabulary is (vocab_size): download it again")
    return vocabulary


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where there is no such file; ModelFolderError where it is something else."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelFolderError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: is it what its name says?")
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"cannot read {path}: {error}; download it again") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} is not a JSON object: download it again")
    return content


def _slides(config: Mapping[str, Any]) -> bool:
    # Some architectures have a switch beside the width, which is then set whether it is used or not.
    return bool(config.get("use_sliding_window", True)) and config.get("sliding_window") is not None


def _listed(names: Any) -> str:
    return ", ".join(names)
