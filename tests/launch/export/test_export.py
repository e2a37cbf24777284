"""An exported model: the same weights whatever they come from, and all that other programs need to load it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from recorded_runs import write_records

from launch.cli import main
from launch.evaluate import model_config
from launch.export.weights import save_weights
from shared.config_file import load_config
from shared.errors import CheckpointError


@pytest.fixture
def finished(tmp_path, format_model) -> Path:
    """A run that has ended with the tiny model."""
    folder = write_records(tmp_path / "mine", **{"model.path": format_model, "environment.prompts": "short"})
    shutil.rmtree(folder / "model")
    shutil.copytree(format_model, folder / "model")
    (folder / "summary.json").write_text(json.dumps({"steps": 4}))
    return folder


def test_the_model_of_a_finished_run_is_copied_with_all_that_goes_with_it(finished, format_model, tmp_path, capsys):
    generation = json.loads((finished / "model/generation_config.json").read_text())
    (finished / "model/generation_config.json").write_text(json.dumps(generation | {"repetition_penalty": 1.05}))
    out = tmp_path / "models" / "out"
    assert main(["export", str(finished), str(out)]) == 0
    assert f"{out}: the model of step 4, from the run's end" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "primezero.toml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (out / "model.safetensors").read_bytes() == (format_model / "model.safetensors").read_bytes()
    assert set(json.loads((out / "generation_config.json").read_text())) == {"eos_token_id", "pad_token_id"}
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_prompts_depend_on_goes_with_it(finished, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(finished), str(out)]) == 0
    found = model_config(out)
    assert found == out / "primezero.toml"
    run, exported = load_config(finished / "config.toml"), load_config(found)
    assert exported.environment == run.environment
    assert exported.sampling == run.sampling
    assert exported.model.dtype == run.model.dtype
    assert model_config(finished / "model") == finished / "config.toml"
    assert model_config(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "3"], "no checkpoint of step 3: it has those of 4"),
        (["--learner.lr", "1"], "`primezero export` has no configuration"),
    ],
)
def test_what_cannot_be_exported_is_explained_and_leaves_nothing(finished, tmp_path, capsys, arguments, said):
    out = tmp_path / "out"
    assert main(["export", str(finished), str(out), *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_is_in_use_is_left_alone(finished, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert main(["export", str(finished), str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_incomplete_model_is_not_exported(finished, tmp_path, capsys):
    (finished / "model/tokenizer.json").unlink()
    assert main(["export", str(finished), str(tmp_path / "out")]) == 1
    assert "tokenizer.json is missing" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_run_whose_first_model_is_gone_asks_for_it(finished, tmp_path, capsys):
    (finished / "checkpoints/step-000002").mkdir(parents=True)
    shutil.rmtree(finished / "model")
    config = (finished / "config.toml").read_text()
    (finished / "config.toml").write_text(config.replace("\npath = ", '\npath = "gone/model" #'))
    assert main(["export", str(finished), str(tmp_path / "out"), "--step", "2"]) == 1
    assert "gone/model, is gone: put it back" in capsys.readouterr().err


@pytest.fixture
def checkpoint(tmp_path, format_model) -> Path:
    """As the learner writes it, but for what no export reads."""
    import torch
    from safetensors.torch import load_file

    weights = {f"causal_lm.{name}": tensor for name, tensor in load_file(format_model / "model.safetensors").items()}
    weights["causal_lm.lm_head.weight"] = weights["causal_lm.model.embed_tokens.weight"]
    folder = tmp_path / "checkpoints/step-000002/policy"
    folder.mkdir(parents=True)
    torch.save({"module": weights, "ds_version": "0"}, folder / "mp_rank_00_model_states.pt")
    return folder.parent


def test_a_checkpoint_has_the_bytes_that_its_learner_would_have_exported(checkpoint, format_model, tmp_path):
    save_weights(checkpoint, format_model, tmp_path / "out")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (format_model / name).read_bytes()


def test_a_broken_checkpoint_is_refused(checkpoint, format_model, tmp_path):
    path = checkpoint / "policy/mp_rank_00_model_states.pt"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content, said in ((bytes(flipped), "is broken"), (whole[:-100], "cannot be read"), (b"", "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            save_weights(checkpoint, format_model, tmp_path / "out")


def test_a_checkpoint_with_anything_but_data_in_it_is_refused_unread(checkpoint, format_model, tmp_path):
    import torch

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"module": Evil()}, checkpoint / "policy/mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        save_weights(checkpoint, format_model, tmp_path / "out")
    assert not (tmp_path / "touched").exists()


def test_a_checkpoint_of_another_model_is_refused(checkpoint, format_model, tmp_path):
    shutil.copytree(format_model, tmp_path / "other")
    config = json.loads((format_model / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(CheckpointError, match="is not of the model in"):
        save_weights(checkpoint, tmp_path / "other", tmp_path / "out")


def test_a_checkpoint_in_parts_says_how_to_get_the_whole(checkpoint, format_model, tmp_path):
    (checkpoint / "policy/mp_rank_00_model_states.pt").rename(checkpoint / "policy/zero_pp_rank_0_model_states.pt")
    with pytest.raises(CheckpointError, match="parts; resume the run"):
        save_weights(checkpoint, format_model, tmp_path / "out")


def test_a_checkpoint_that_the_run_has_replaced_meanwhile_is_gone(checkpoint, format_model, tmp_path):
    shutil.rmtree(checkpoint)
    with pytest.raises(CheckpointError, match="step-000002 is gone: a run that goes on keeps only its newest ones"):
        save_weights(checkpoint, format_model, tmp_path / "out")
