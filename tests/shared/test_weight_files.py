"""Half-downloaded and damaged weights, told from whole ones without reading them."""

import json
import math
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
        assert parameters(folder) == sum(math.prod(shape) for shape in SHAPES.values())


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
        ({EMBEDDING: "../other.safetensors"}, "no weight file of that folder"),
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
        ({"vocab_size": 9}, f"1 are of other shapes, among them {EMBEDDING} ([8, 2] instead of [9, 2])"),
        ({"hidden_size": 4}, f"of other shapes, among them {EMBEDDING} ([8, 2] instead of [8, 4])"),
        ({"intermediate_size": 5}, "6 are of other shapes, among them model.layers.0.mlp.gate_proj.weight"),
        ({"num_hidden_layers": 3}, "12 are missing, among them model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "12 are too many, among them model.layers.1.self_attn.q_proj.weight"),
        ({"tie_word_embeddings": False}, "1 are missing, among them lm_head.weight"),
    ],
)
def test_weights_of_other_sizes_than_config_json_says_are_refused(tmp_path, says, said):
    folder = make_model_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(CONFIG | says))
    assert said in refusal(folder)


def test_a_tensor_that_no_model_has_is_named(tmp_path):
    folder = make_model_folder(tmp_path / "m")
    adapter = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (1, 2)}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(SHAPES | adapter))
    assert "1 are too many, among them base_model.model" in refusal(folder)
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": (1,)}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(SHAPES | constant))
    check_weights(folder)


def test_a_file_that_only_the_engine_would_load_is_named(tmp_path):
    """Without an index it loads every *.safetensors; with one, those of the index."""
    one, two = make_model_folder(tmp_path / "one"), make_sharded_folder(tmp_path / "two")
    for folder in (one, two):
        (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes({"lora": (1,)}))
        (folder / "._model.safetensors").touch()  # hidden files are looked at by nobody
    assert "adapter_model.safetensors beside model.safetensors" in refusal(one)
    check_weights(two)


def test_two_models_in_one_folder_are_told_apart_by_nobody(tmp_path):
    """The learner would load the whole file, the engine those of the index."""
    folder = make_sharded_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(SHAPES))
    assert "the learner would load the one, the engine the others" in refusal(folder)


def test_a_tensor_that_the_index_does_not_name_is_refused(tmp_path):
    folder = make_sharded_folder(tmp_path / "m")
    rest = {name: shape for name, shape in SHAPES.items() if name != EMBEDDING}
    (folder / SECOND).write_bytes(safetensors_bytes(rest | {EMBEDDING: SHAPES[EMBEDDING]}))
    assert f"{SECOND} has {EMBEDDING}, which the index does not say is in it" in refusal(folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path, sharded):
    folder = make_model_folder(tmp_path / "m")
    path, shapes = folder / "model.safetensors", {"lm_head.weight": SHAPES[EMBEDDING]} | SHAPES
    if sharded:
        path = path.rename(folder / SECOND)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(shapes, SECOND)}))
    content = safetensors_bytes(shapes)
    path.write_bytes(content)
    check_weights(folder)
    last_of_head = len(content) - 4 * sum(map(math.prod, SHAPES.values())) - 1
    path.write_bytes(content[:last_of_head] + b"x" + content[last_of_head + 1 :])
    assert "lm_head.weight is another" in refusal(folder)
