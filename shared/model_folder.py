"""What identifies a model folder, and whether it is one, without loading it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from shared.errors import ModelFolderError
from shared.model_config import check_config, read_object
from shared.weight_files import check_weight_files

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


def check_model_folder(folder: Path, named_by: str = "--model.path") -> None:
    """Raise ModelFolderError, saying what to do, unless this is a whole model that can be trained, and its tokenizer.

    Of the weights only the headers are read. named_by: what the user named the folder with
    """
    check_weights(folder, named_by)
    if not (folder / "tokenizer.json").is_file():
        raise ModelFolderError(_lacks(folder, "tokenizer.json"))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        read_object(folder / name)
    last = stop_tokens(folder)[-1]
    if (vocabulary := vocabulary_size(folder)) is not None and last >= vocabulary:
        raise ModelFolderError(
            f"{folder} ends completions by token {last}, but the model knows {vocabulary} tokens: its tokenizer or "
            "generation_config.json is another model's"
        )


def check_weights(folder: Path, named_by: str = "--model.path") -> None:
    """Raise ModelFolderError, saying what to do, unless the folder holds the whole of a model that can be trained.

    named_by: what the user named the folder with
    """
    if folder.exists() and not folder.is_dir():
        raise ModelFolderError(f"{folder} is a file: name the folder of a Hugging Face model by {named_by}")
    if not folder.exists():
        raise ModelFolderError(
            f"the model folder {folder} does not exist: put a Hugging Face model there, name another by {named_by}, "
            f"or make the tiny model with `primezero init-model {folder}`"
        )
    if not (folder / "config.json").is_file():
        raise ModelFolderError(_lacks(folder, "config.json"))
    check_weight_files(folder, check_config(folder))


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over config.json and the names and sizes of the weight files, hexadecimal."""
    digest = _hash_files(folder, ["config.json"])
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over the tokenizer's files and chat template, hexadecimal."""
    return _hash_files(folder, _TOKENIZER_FILES).hexdigest()


def stop_tokens(folder: Path) -> list[int]:
    """Ids that end a completion: all that the model, its generation defaults or its tokenizer call EOS.

    Raises ModelFolderError when there is none: completions would never end by themselves.
    """
    tokens: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        eos = read_object(folder / name).get("eos_token_id")
        tokens.update(eos if isinstance(eos, list) else () if eos is None else (eos,))
    eos_text = read_object(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(eos_text, dict):
        eos_text = eos_text.get("content")
    if eos_text is not None:
        added = read_object(folder / "tokenizer.json").get("added_tokens", [])
        tokens.update(token["id"] for token in added if token["content"] == eos_text)
    if not tokens:
        raise ModelFolderError(
            f"{folder} names no eos_token_id, and completions would never end by themselves: write it into "
            "generation_config.json"
        )
    if not all(isinstance(token, int) and token >= 0 for token in tokens):
        raise ModelFolderError(f"{folder}: eos_token_id must be token ids, found {', '.join(sorted(map(str, tokens)))}")
    return sorted(tokens)


def vocabulary_size(folder: Path) -> int | None:
    """Token ids that the model knows are below this; None where its configuration does not say."""
    size = read_object(folder / "config.json").get("vocab_size")
    return size if isinstance(size, int) else None


def context_length(folder: Path) -> int | None:
    """Tokens that the model can read (max_position_embeddings); None where its configuration does not say."""
    length = read_object(folder / "config.json").get("max_position_embeddings")
    return length if isinstance(length, int) else None


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy what a model folder holds beside its weights and their configuration."""
    for name in (*_TOKENIZER_FILES, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def _lacks(folder: Path, file: str) -> str:
    inside = folder / "model"  # where a run's folder has the trained model
    meant = f"do you mean {inside}?" if (inside / file).is_file() else "finish the download, or name another folder"
    return f"{folder} is not a complete model folder: {file} is missing; {meant}"


def _hash_files(folder: Path, names: Iterable[str]) -> hashlib._Hash:
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest
