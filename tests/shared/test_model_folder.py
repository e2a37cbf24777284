import json
import shutil

import pytest
from model_files import VOCABULARY, make_model_folder

from shared.errors import ModelFolderError
from shared.model_folder import (
    check_model_folder,
    copy_tokenizer,
    generation_tokens,
    model_fingerprint,
    stop_tokens,
    tokenizer_fingerprint,
)


@pytest.fixture
def folder(tmp_path):
    return make_model_folder(tmp_path / "model")


def test_a_complete_folder_passes(folder):
    check_model_folder(folder)


@pytest.mark.parametrize(("token", "known"), [(VOCABULARY - 1, True), (VOCABULARY, False)])
def test_a_stop_token_that_the_model_does_not_know_is_refused(folder, token, known):
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {token}}}')
    if known:
        check_model_folder(folder)
    else:
        with pytest.raises(ModelFolderError, match=f"ends completions by token {token}, but the model knows"):
            check_model_folder(folder)


def test_other_weight_formats_do_not_count(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match="safetensors"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    ("name", "model_changes", "tokenizer_changes"),
    [("config.json", True, False), ("chat_template.jinja", False, True), ("tokenizer.json", False, True)],
)
def test_fingerprints_follow_their_own_files(folder, name, model_changes, tokenizer_changes):
    model, tokenizer = model_fingerprint(folder), tokenizer_fingerprint(folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    assert (model_fingerprint(folder) != model) is model_changes
    assert (tokenizer_fingerprint(folder) != tokenizer) is tokenizer_changes


def test_a_truncated_download_has_another_fingerprint(folder):
    whole = model_fingerprint(folder)
    (folder / "model.safetensors").write_bytes(b"weight")
    assert model_fingerprint(folder) != whole


def test_an_exported_folder_gets_the_tokenizer(folder, tmp_path):
    exported = tmp_path / "exported"
    exported.mkdir()
    copy_tokenizer(folder, exported)
    assert tokenizer_fingerprint(exported) == tokenizer_fingerprint(folder)
    assert not (exported / "config.json").exists()


def test_a_folder_that_is_missing_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelFolderError, match=r"name another by --model, or make .* init-model"):
        check_model_folder(tmp_path / "absent", "--model")


def test_a_file_in_the_place_of_a_folder_is_called_one(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelFolderError, match="is a file"):
        check_model_folder(tmp_path / "model.gguf")


def test_a_run_s_folder_in_the_place_of_its_model_s_is_put_right(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    with pytest.raises(ModelFolderError, match=r"config\.json is missing; do you mean .*/run/model"):
        check_model_folder(run)
    (run / "model/config.json").unlink()
    with pytest.raises(ModelFolderError, match=r"config\.json is missing; finish the download"):
        check_model_folder(run)


def test_stop_tokens_come_from_everything_that_names_them(folder):
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="eos_token_id"):
        stop_tokens(folder)
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (folder / "tokenizer.json").write_text('{"added_tokens": [{"id": 7, "content": "<end>"}]}')
    assert stop_tokens(folder) == [2, 5, 7]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_is_named(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelFolderError, match=f"cannot read .*{name}.*download it again"):
        check_model_folder(folder)


def test_an_end_of_turn_that_the_model_cannot_sample_is_refused(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": 8}')
    with pytest.raises(ModelFolderError, match="by token 8, but the model knows 8 tokens"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "generation_config.json",
            '{"eos_token_id": [[2, 0]]}',
            r"generation_config.json .*Expected `int`, got `array`",
        ),
        ("generation_config.json", '{"eos_token_id": "2"}', r"generation_config.json .*eos_token_id"),
        ("generation_config.json", '{"eos_token_id": [-1]}', r"must be token ids, found -1"),
        ("generation_config.json", "[]", r"is not a JSON object"),
        ("tokenizer.json", '{"added_tokens": null}', r"tokenizer.json .*Expected `array`, got `null`"),
        ("tokenizer.json", '{"added_tokens": [{"id": "1", "content": "a"}]}', r"tokenizer.json .*added_tokens"),
        ("tokenizer.json", '{"model": []}', r"tokenizer.json .*model"),
        ("tokenizer_config.json", '{"eos_token": 3}', r"tokenizer_config.json .*eos_token"),
        ("special_tokens_map.json", '{"eos_token": ["<end>"]}', r"special_tokens_map.json .*eos_token"),
        ("special_tokens_map.json", "{", r"cannot read .*special_tokens_map.json"),
    ],
)
def test_a_file_of_another_shape_is_named_with_the_place(folder, name, content, said):
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (folder / name).write_text(content)
    with pytest.raises(ModelFolderError, match=said):
        check_model_folder(folder)


def test_a_stop_token_may_be_named_in_any_way_that_the_tokenizer_is_told(folder):
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"</s>": 1}}, "added_tokens": []}')
    assert stop_tokens(folder) == [1, 2]
    (folder / "tokenizer.json").write_text('{"model": {"vocab": [["</s>", 0.0]]}}')
    assert stop_tokens(folder) == [2]


def test_of_generation_defaults_the_tokens_that_the_model_knows_are_kept(folder, tmp_path):
    sampling = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 0, "cache_implementation": "no"}
    tokens = {"eos_token_id": [2, 3], "bos_token_id": 1}
    others = {"pad_token_id": VOCABULARY, "decoder_start_token_id": -1, "forced_bos_token_id": None, "x_token_id": []}
    (folder / "generation_config.json").write_text(json.dumps(sampling | tokens | others))
    assert generation_tokens(folder) == tokens
    (tmp_path / "out").mkdir()
    copy_tokenizer(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == tokens
