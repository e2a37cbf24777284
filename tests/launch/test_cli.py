import pytest

from launch.cli import main


def test_an_unknown_key_fails_before_anything_starts_naming_it(capsys, tmp_path):
    assert main(["train", "--run.folder", str(tmp_path), "--learner.lrr", "1"]) == 1
    assert "learner.lrr: unknown key" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_folder_says_how_to_make_one(capsys, tmp_path):
    assert main(["train", "--run.folder", str(tmp_path), "--model.path", str(tmp_path / "none")]) == 1
    assert "primezero init-model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_model_folder_says_what_is_missing(capsys, tmp_path, missing):
    for name in {"config.json", "tokenizer.json", "model.safetensors"} - {missing}:
        (tmp_path / name).write_text("{}")
    assert main(["train", "--run.folder", str(tmp_path), "--model.path", str(tmp_path)]) == 1
    assert missing.removeprefix("model") in capsys.readouterr().err


def test_config_lists_every_key_with_a_word_on_it(capsys):
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("--learner.lr ") and "AdamW" in line for line in lines)


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "init-model" in capsys.readouterr().out
