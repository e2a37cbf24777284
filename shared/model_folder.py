"""What identifies a model folder, and whether it is one, without loading it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from shared.errors import ModelFolderError

_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def check_model_folder(folder: Path) -> None:
    """Raise ModelFolderError, saying what to do, unless a model could be loaded from here."""
    if not folder.is_dir():
        raise ModelFolderError(
            f"the model folder {folder} does not exist: put a Hugging Face model there, point --model.path to one, "
            f"or make the tiny model with `primezero init-model {folder}`"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelFolderError(f"{folder} is not a complete model folder: {name} is missing")
    if not any(folder.glob("*.safetensors")):
        raise ModelFolderError(f"{folder} has no *.safetensors; other weight formats are not loaded")


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over config.json and the names and sizes of the weight files, hexadecimal."""
    digest = _hash_files(folder, ["config.json"])
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over the tokenizer's files and chat template, hexadecimal."""
    return _hash_files(folder, _TOKENIZER_FILES).hexdigest()


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy what a model folder holds beside its weights and their configuration."""
    for name in (*_TOKENIZER_FILES, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def _hash_files(folder: Path, names: Iterable[str]) -> hashlib._Hash:
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest
