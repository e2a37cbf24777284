"""Half-downloaded and damaged weights, told from whole ones without reading them."""

import json
import struct

import pytest
from model_files import CONFIG, EMBEDDING, SHAPES, make_model_folder, make_sharded_folder, safetensors_bytes

from shared.errors import ModelFolderError
from shared.model_folder import check_weights
from shared.safetensors_header import read_header
from shared.weight_files import parameters

SECOND = "model-00002-of-00002.safetensors"


def refusal(folder) -> str:
    with pytest.raises(ModelFolderError) as caught:
        check_weights(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_whole_weights_pass_in_one_file_and_in_several(tmp_path):
    for folder in (make_model_folder(tmp_path / "one"), make_sharded_folder(tmp_path / "two")):
        check_weights(folder)
        assert parameters(folder) == 8 * 2 + 2


def test_the_header_is_read_as_the_library_writes_it(tmp_path):
    import torch
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(3, 2, dtype=torch.bfloat16), "b": torch.zeros((), dtype=torch.int64)}
    save_file(tensors, tmp_path / "f.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "f.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in header.items()} == {"a": ("BF16", (3, 2)), "b": ("I64", ())}


def test_a_missing_shard_is_named(tmp_path):
    folder = make_sharded_folder(tmp_path / "m")
    (folder / SECOND).unlink()
    assert f"lacks {SECOND}, file 2 of the 2" in refusal(folder)


def test_a_missing_index_is_named(tmp_path):
    folder = make_sharded_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(folder)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("left", "said"), [(-1, "finish the download"), (40, "ends within its header"), (5, "damaged")]
)
def test_a_shortened_file_is_named(tmp_path, sharded, left, said):
    folder = (make_sharded_folder if sharded else make_model_folder)(tmp_path / "m")
    path = folder / (SECOND if sharded else "model.safetensors")
    path.write_bytes(path.read_bytes()[:left])
    message = refusal(folder)
    assert path.name in message
    assert said in message


def test_a_file_that_is_too_long_is_refused(tmp_path):
    folder = make_model_folder(tmp_path / "m")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert "by its own header: download it again" in refusal(folder)


def test_a_pointer_in_the_place_of_the_weights_says_what_to_run(tmp_path):
    folder = make_model_folder(tmp_path / "m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{x",
        b"[" * 10_000,
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e30]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}}',
    ],
)
def test_a_header_that_is_nonsense_is_refused(tmp_path, header):
    folder = make_model_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "a header that cannot be read" in refusal(folder)


def test_a_length_that_is_absurd_is_refused_before_anything_is_read(tmp_path):
    folder = make_model_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert "not a safetensors file" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_offsets": [0, 8]}, "is not where its header says"),
        ({"shape": [2, 2]}, "is not where its header says"),
        ({"dtype": "F4"}, "as F4, which is not trained on"),
    ],
)
def test_tensors_that_overlap_or_have_other_sizes_are_refused(tmp_path, change, said):
    folder = make_model_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(SHAPES, **change))
    assert said in refusal(folder)


@pytest.mark.parametrize(
    "leftover", ["a.incomplete", "model.safetensors.part", ".cache/huggingface/download/x.incomplete"]
)
def test_what_an_unfinished_download_left_is_named(tmp_path, leftover):
    folder = make_model_folder(tmp_path / "m")
    (folder / leftover).parent.mkdir(parents=True, exist_ok=True)
    (folder / leftover).touch()
    assert leftover in refusal(folder)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({EMBEDDING: "../other.safetensors"}, "no file of that folder"),
        ({EMBEDDING: SECOND}, f"lacks {EMBEDDING}, which the index says"),
        ({EMBEDDING: 3}, "weight_map"),
        (None, "weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, weight_map, said):
    folder = make_sharded_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ({"vocab_size": 9}, "those of vocab_size=8, but its config.json says 9"),
        ({"hidden_size": 4}, "those of hidden_size=2, but its config.json says 4"),
        ({"num_hidden_layers": 3}, "those of num_hidden_layers=2, but its config.json says 3"),
    ],
)
def test_weights_of_other_sizes_than_config_json_says_are_refused(tmp_path, says, said):
    folder = make_model_folder(tmp_path / "m")
    layers = {f"model.layers.{number}.mlp.weight": (2,) for number in (0, 1)}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(SHAPES | layers))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 2}))
    check_weights(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 2} | says))
    assert said in refusal(folder)
