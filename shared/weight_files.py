"""Whether a model folder's weight files are all there and whole, from their headers.

Engine and learner choose by themselves which files they load: the engine those that the index names, or without one
every *.safetensors; the learner model.safetensors, or without it those of the index. A folder passes if both choose the
files that are checked here, and find every weight of the architecture in them, once, and nothing else.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import msgspec

from shared.errors import ModelFolderError
from shared.model_config import converted, read_object
from shared.model_sizes import EMBEDDING, HEAD, ModelSizes
from shared.safetensors_header import StoredTensor, read_header, tensor_bytes

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# What download programs call a file that is not finished.
_UNFINISHED = ("*.incomplete", "*.part", "*.aria2", ".cache/huggingface/download/**/*.incomplete")
# Constants that older versions of transformers stored; nobody loads them.
_IGNORED = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def check_weight_files(folder: Path, sizes: ModelSizes) -> None:
    """Raise ModelFolderError, saying what to do, unless the weights are whole, and those that config.json describes."""
    expected, stored = sizes.tensors, stored_tensors(folder)
    have = {name: tensor.shape for name, tensor in stored.items() if not name.endswith(_IGNORED)}
    if sizes.tied and HEAD in have and EMBEDDING in have:
        _check_tied(folder, stored)
        del have[HEAD]
    others = {
        name: f"{name} ({list(have[name])} instead of {list(shape)})"
        for name, shape in expected.items()
        if have.get(name, shape) != shape
    }
    for what, named in (
        ("missing", [name for name in expected if name not in have]),
        ("too many", [name for name in have if name not in expected]),
        ("of other shapes", list(others.values())),
    ):
        if named:
            raise ModelFolderError(
                f"the weights in {folder} are not those that its config.json describes: {len(named)} are {what}, among "
                f"them {named[0]}; put the model's own there, all of them"
            )


def parameters(folder: Path) -> int:
    """Numbers that the weights are made of. ModelFolderError as `check_weight_files`."""
    return sum(tensor.elements for tensor in stored_tensors(folder).values())


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All weights that are loaded, by name. ModelFolderError where a file is missing, not whole, of another format, or
    one too many."""
    names = {path.name for path in folder.glob("*.safetensors") if not path.name.startswith(".")}
    if not names and not (folder / INDEX).exists():
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
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if SINGLE not in names:
        raise ModelFolderError(f"{folder} has neither {SINGLE} nor {INDEX}: finish the download")
    if more := sorted(names - {SINGLE}):
        raise ModelFolderError(
            f"{folder} has {more[0]} beside {SINGLE}, and without {INDEX} the engine would load both: move it to "
            "another folder; an adapter has to be merged into the model before"
        )
    return read_header(folder / SINGLE)


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX
    places = converted(index, read_object(index), _Index).weight_map
    shards = sorted(set(places.values()))
    if not shards:
        raise ModelFolderError(f"{index} does not say where the weights are (weight_map): download it again")
    if (folder / SINGLE).exists() and shards != [SINGLE]:
        raise ModelFolderError(
            f"{folder} has {SINGLE}, and {INDEX} with other files: the learner would load the one, the engine the "
            "others; remove what is not the model"
        )
    found: dict[str, StoredTensor] = {}
    for number, shard in enumerate(shards, start=1):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelFolderError(f"{index} names {shard!r}, which is no weight file of that folder")
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
        if more := sorted(held.keys() - named):
            raise ModelFolderError(
                f"{folder / shard} has {more[0]}, which the index does not say is in it: the files are not of one "
                "download"
            )
        found |= held
    return found


def _check_tied(folder: Path, stored: dict[str, StoredTensor]) -> None:
    """A tied head that is stored all the same has to be the embedding: where it is not, the learner unties them."""
    places = read_object(folder / INDEX).get("weight_map", {})
    embedding, head = (tensor_bytes(folder / places.get(name, SINGLE), stored[name]) for name in (EMBEDDING, HEAD))
    if stored[EMBEDDING].dtype != stored[HEAD].dtype or any(a != b for a, b in zip_longest(embedding, head)):
        raise ModelFolderError(
            f"config.json in {folder} ties the output head to the embedding (tie_word_embeddings), but {HEAD} is "
            'another: write "tie_word_embeddings": false there, or remove that tensor'
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
