"""What a Hugging Face model folder says, read as plain JSON: nothing in it is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.errors import ModelFolderError


def check_model_folder(folder: Path) -> None:
    """Raise ModelFolderError unless the folder holds a configuration and safetensors weights."""
    if not folder.is_dir():
        raise ModelFolderError(f"the model folder {folder} does not exist")
    if not (folder / "config.json").is_file():
        raise ModelFolderError(f"{folder} is not a model folder: it has no config.json")
    if next(folder.glob("*.safetensors"), None) is None:
        raise ModelFolderError(f"{folder} has no *.safetensors weights; other formats are not read")


def stop_tokens(folder: Path) -> list[int]:
    """Ids that end a completion: all that the model, its generation defaults or its tokenizer call EOS.

    Raises ModelFolderError when there is none: completions would never end by themselves.
    """
    tokens: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        eos = _read(folder / name).get("eos_token_id")
        tokens.update(eos if isinstance(eos, list) else () if eos is None else (eos,))
    eos_text = _read(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(eos_text, dict):
        eos_text = eos_text.get("content")
    if eos_text is not None:
        added = _read(folder / "tokenizer.json").get("added_tokens", [])
        tokens.update(token["id"] for token in added if token["content"] == eos_text)
    if not tokens:
        raise ModelFolderError(f"{folder} names no eos_token_id: completions would never end by themselves")
    if not all(isinstance(token, int) and token >= 0 for token in tokens):
        raise ModelFolderError(f"{folder}: eos_token_id must be token ids, found {sorted(map(str, tokens))}")
    return sorted(tokens)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} is not a JSON object")
    return content
