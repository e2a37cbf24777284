"""What identifies a model folder, and whether it is one, without loading it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import ModelFolderError
from shared.metrics import write_json
from shared.model_config import converted, read_object
from shared.model_sizes import folder_sizes
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
_GENERATION = "generation_config.json"
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class _Ends(msgspec.Struct, frozen=True):
    """config.json and generation_config.json."""

    eos_token_id: int | list[int] | None = None


class _NamedToken(msgspec.Struct, frozen=True):
    content: str


class _NamedTokens(msgspec.Struct, frozen=True):
    """tokenizer_config.json and special_tokens_map.json."""

    eos_token: str | _NamedToken | None = None


class _AddedToken(msgspec.Struct, frozen=True):
    id: int
    content: str


class _Model(msgspec.Struct, frozen=True):
    vocab: Any = None  # by text, but for models that this system does not know


class _Tokenizer(msgspec.Struct, frozen=True):
    added_tokens: list[_AddedToken] = []
    model: _Model = _Model()


def check_model_folder(folder: Path, named_by: str = "--model.path") -> None:
    """Raise ModelFolderError, saying what to do, unless this is a whole model that can be trained, and its tokenizer.

    Of the weights only the headers are read. named_by: what the user named the folder with
    """
    check_weights(folder, named_by)
    if not (folder / "tokenizer.json").is_file():
        raise ModelFolderError(_lacks(folder, "tokenizer.json"))
    for name in (*_TOKENIZER_FILES, _GENERATION):
        if name.endswith(".json"):
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
    check_weight_files(folder, folder_sizes(folder))


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over config.json, and of the weight files names, sizes and samples, hexadecimal.

    The samples, evenly spaced, tell models of one family apart, whose files are of the same sizes.
    """
    digest = _hash_files(folder, ["config.json"])
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(size * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over the tokenizer's files and chat template, hexadecimal."""
    return _hash_files(folder, _TOKENIZER_FILES).hexdigest()


def stop_tokens(folder: Path) -> list[int]:
    """Ids that end a completion: all that the model, its generation defaults or its tokenizer call EOS.

    Raises ModelFolderError when there is none: completions would never end by themselves.
    """
    tokens: set[int] = set()
    for name in ("config.json", _GENERATION):
        eos = converted(folder / name, read_object(folder / name), _Ends).eos_token_id
        tokens.update(eos if isinstance(eos, list) else () if eos is None else (eos,))
    texts = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (named := converted(folder / name, read_object(folder / name), _NamedTokens).eos_token) is not None:
            texts.add(named.content if isinstance(named, _NamedToken) else named)
    if texts:
        tokenizer = converted(folder / "tokenizer.json", read_object(folder / "tokenizer.json"), _Tokenizer)
        known = tokenizer.model.vocab if isinstance(tokenizer.model.vocab, dict) else {}
        known |= {token.content: token.id for token in tokenizer.added_tokens}
        tokens.update(known[text] for text in texts if text in known)
    if not tokens:
        raise ModelFolderError(
            f"{folder} names no eos_token_id, and completions would never end by themselves: write it into "
            "generation_config.json"
        )
    if (least := min(tokens)) < 0:
        raise ModelFolderError(f"{folder}: eos_token_id must be token ids, found {least}")
    return sorted(tokens)


def generation_tokens(folder: Path) -> dict[str, Any]:
    """Which tokens begin, end and pad, by generation_config.json; ids that the model does not know are left out.

    The rest of it is not used here, and libraries refuse to load or to write some of it.
    """
    vocabulary = vocabulary_size(folder)

    def known(value: object) -> bool:
        ids = value if isinstance(value, list) and value else [value]
        return all(type(id) is int and id >= 0 and (vocabulary is None or id < vocabulary) for id in ids)

    content = read_object(folder / _GENERATION)
    return {key: value for key, value in content.items() if key.endswith("_token_id") and known(value)}


def vocabulary_size(folder: Path) -> int | None:
    """Token ids that the model knows are below this; None where its configuration does not say."""
    size = read_object(folder / "config.json").get("vocab_size")
    return size if isinstance(size, int) else None


def context_length(folder: Path) -> int | None:
    """Tokens that the model can read (max_position_embeddings); None where its configuration does not say."""
    length = read_object(folder / "config.json").get("max_position_embeddings")
    return length if isinstance(length, int) else None


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy what a model folder holds beside its weights and their configuration.

    Of its generation defaults the tokens alone: its penalties and cut-offs were not used in training.
    """
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
    if (source / _GENERATION).is_file():
        write_json(destination / _GENERATION, generation_tokens(source))


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
