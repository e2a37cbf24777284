"""Whether a model folder's weight files are all there and whole, from their headers alone."""

from __future__ import annotations

import re
from pathlib import Path

from shared.errors import ModelFolderError
from shared.model_config import read_object
from shared.safetensors_header import StoredTensor, read_header

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# What download programs call a file that is not finished.
_UNFINISHED = ("*.incomplete", "*.part", "*.aria2", ".cache/huggingface/download/**/*.incomplete")
_EMBEDDING = "embed_tokens.weight"
_LAYER = re.compile(r"\blayers\.([0-9]{1,6})\.")


def check_weight_files(folder: Path, vocabulary: int) -> None:
    """Raise ModelFolderError, saying what to do, unless the weights are whole, and of the sizes that config.json says.

    Compared are the embedding, which has `vocabulary` rows, and the number of layers.
    """
    config = read_object(folder / "config.json")
    tensors = stored_tensors(folder)
    embeddings = [tensor.shape for name, tensor in tensors.items() if name.endswith(_EMBEDDING)]
    layers = {int(found[1]) for name in tensors if (found := _LAYER.search(name))}
    for key, says, have in (
        ("vocab_size", vocabulary, {shape[0] for shape in embeddings if shape}),
        ("hidden_size", config.get("hidden_size"), {shape[-1] for shape in embeddings if shape}),
        ("num_hidden_layers", config.get("num_hidden_layers"), {len(layers)} if layers else set()),
    ):
        if isinstance(says, int) and have - {says}:
            raise ModelFolderError(
                f"the weights in {folder} are those of {key}={min(have - {says})}, but its config.json says {says}: "
                "they are not of the same model; download it again"
            )


def parameters(folder: Path) -> int:
    """Numbers that the weights are made of. ModelFolderError as `check_weight_files`."""
    return sum(tensor.elements for tensor in stored_tensors(folder).values())


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All weights by name. ModelFolderError where a file is missing, not whole, or of another format."""
    if not any(folder.glob("*.safetensors")) and not (folder / INDEX).exists():
        raise ModelFolderError(
            f"{folder} has no *.safetensors; other weight formats are not loaded, since they can carry code: finish "
            "the download, or use a model that has them"
        )
    unfinished = [path for pattern in _UNFINISHED for path in folder.glob(pattern)]
    if unfinished:
        raise ModelFolderError(
            f"the download into {folder} was not finished ({unfinished[0].relative_to(folder)} is left of it): finish "
            "it, or, where the model is whole nevertheless, remove that file"
        )
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise ModelFolderError(f"{folder} has neither {SINGLE} nor {INDEX}: finish the download")
        return read_header(folder / SINGLE)
    return _indexed(folder)


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise ModelFolderError(f"{index} does not say where the weights are (weight_map): download it again")
    found: dict[str, StoredTensor] = {}
    shards = sorted(set(places.values()))
    for number, shard in enumerate(shards, start=1):
        if Path(shard).name != shard:
            raise ModelFolderError(f"{index} names {shard!r}, which is no file of that folder")
        if not (folder / shard).is_file():
            raise ModelFolderError(
                f"{folder} lacks {shard}, file {number} of the {len(shards)} that its index names: finish the download"
            )
        held = read_header(folder / shard)
        named = {name for name, place in places.items() if place == shard}
        if absent := sorted(named - held.keys()):
            raise ModelFolderError(
                f"{folder / shard} lacks {absent[0]}, which the index says is in it: the files are not of one download"
            )
        found |= {name: held[name] for name in named}
    return found
