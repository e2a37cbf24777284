import json
import shutil

import pytest

from learner.packed_model import load_model
from shared.errors import ModelFolderError
from shared.pretrained import generation_config, model_config


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def change(folder, file: str, **changes: object) -> None:
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(content | changes))


def test_weights_of_other_shapes_than_config_json_describes_are_named(folder):
    wider = json.loads((folder / "config.json").read_text())["intermediate_size"] + 64
    change(folder, "config.json", intermediate_size=wider)
    with pytest.raises(ModelFolderError, match=rf"gate_proj\.weight \(.* instead of \[{wider}, \d+\]\)"):
        load_model(folder, "float32")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("generation_config.json", {"do_sample": False, "temperature": 0.6, "top_p": 0.9}),
        ("generation_config.json", {"max_new_tokens": 0, "cache_implementation": "none of these"}),
        ("generation_config.json", {"pad_token_id": -1}),
        ("config.json", {"output_attentions": True}),
        ("config.json", {"temperature": 0.6, "do_sample": False}),
        ("config.json", {"pad_token_id": 10**6}),
        ("config.json", {"pad_token_id": -100}),
    ],
)
def test_what_no_run_uses_hinders_neither_loading_nor_saving(folder, tmp_path, file, changes):
    change(folder, file, **changes)
    load_model(folder, "float32").save_pretrained(tmp_path / "out")
    for config in (model_config(folder), generation_config(folder)):
        config.save_pretrained(tmp_path / "configurations")
    load_model(tmp_path / "out", "float32")


@pytest.mark.parametrize("changes", [{"id2label": [1]}, {"rope_parameters": {"rope_type": "llama3"}}])
def test_a_configuration_that_the_library_refuses_is_named(folder, changes):
    change(folder, "config.json", **changes)
    with pytest.raises(ModelFolderError, match=r"config\.json is refused: \w+Error: .*; put the model's own there"):
        load_model(folder, "float32")


def test_whatever_the_library_raises_is_an_error_of_the_folder(folder, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("Padding_idx must be within num_embeddings")

    monkeypatch.setattr("torch.nn.Embedding.__init__", fail)
    with pytest.raises(ModelFolderError, match=r"cannot load the model in .*: AssertionError: Padding_idx"):
        load_model(folder, "float32")
