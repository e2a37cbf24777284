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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from launch.tiny_model import TinyModelSettings, make_tiny_model
    from shared.config import EnvironmentConfig

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(folder, EnvironmentConfig(), settings=TinyModelSettings(steps=1, batch=2), seed=0)
    return folder


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--sampling.max_response_tokens", "4000"], "reads 512 tokens at most"),
        (["--sampling.max_response_tokens", "12", "--sampling.max_prompt_tokens", "20"], "max_prompt_tokens=20 is too"),
    ],
)
def test_prompts_that_cannot_fit_are_refused_before_anything_starts(capsys, tmp_path, model, overrides, said):
    assert main(["train", "--run.folder", str(tmp_path), "--model.path", str(model), *overrides]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_config_lists_every_key_with_a_word_on_it(capsys):
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("--learner.lr ") and "AdamW" in line for line in lines)


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "init-model" in capsys.readouterr().out
