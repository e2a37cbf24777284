"""The commands that --help and the documents show: all are understood, and those that are quick run as printed."""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from printed_examples import COMMANDS, ROOT, all_examples, examples, make_place, run_example

from launch.cli import _parser, main
from launch.command_words import split_overrides
from shared.config_file import load_config

# They start engines, train, or measure; tests/launch/test_long_examples.py has them.
LONG = ("train", "eval", "play", "bench", "init-model")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_of_itself(name):
    shown = examples(COMMANDS[name].epilog or "")
    assert shown
    assert all(line.startswith(f"primezero {name}") for line in shown)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("line", all_examples())
def test_every_example_is_understood(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words, overrides = split_overrides(shlex.split(line)[1:])
    options = _parser().parse_args(words)
    load_config(getattr(options, "config", None), overrides)


@pytest.fixture
def place(tmp_path, format_model, monkeypatch) -> Path:
    """A folder where the examples find what they name."""
    import torch
    from safetensors.torch import load_file

    make_place(tmp_path, format_model)
    weights = {f"causal_lm.{k}": tensor for k, tensor in load_file(format_model / "model.safetensors").items()}
    weights["causal_lm.lm_head.weight"] = weights["causal_lm.model.embed_tokens.weight"]
    for step in (40, 220):  # those that two documented runs keep
        policy = tmp_path / f"runs/mine/checkpoints/step-{step:06}/policy"
        policy.mkdir(parents=True)
        torch.save({"module": weights}, policy / "mp_rank_00_model_states.pt")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**34))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_quick_examples_run_as_printed(place, capsys):
    quick = [line for line in all_examples() if line.split()[1] not in LONG]
    assert {line.split()[1] for line in quick} == {
        "audit",
        "completion",
        "config",
        "doctor",
        "export",
        "inspect",
        "plan",
        "report",
    }
    failed = {}
    for line in quick:
        shutil.rmtree(place / "models/mine", ignore_errors=True)
        if main(shlex.split(line)[1:]) != 0:
            failed[line] = capsys.readouterr().err
    assert failed == {}


@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_the_readme_s_commands_run_one_after_the_other_in_quick_forms(tmp_path, format_model):
    """Those that start engines, as printed but for what makes them short: a model to begin with, steps, problems."""
    shorter = {
        "train": "--run.steps 2 --run.evaluate_every 1 --run.final_evaluations 1 --run.checkpoint_every 0",
        "eval": "--problems 4",
    }
    shutil.copytree(format_model, tmp_path / "models/tiny")
    os.symlink(ROOT / "launch", tmp_path / "launch")
    lines = examples((ROOT / "README.md").read_text())
    wanted = [line for line in lines if line.split()[1] in ("train", "eval", "export", "play", "report", "inspect")]
    assert [line.split()[1] for line in wanted] == ["train", "eval", "report", "inspect", "export", "play"]
    said = {}
    for line in wanted:
        command = line.split()[1]
        said[command] = run_example(f"{line} {shorter.get(command, '')}", tmp_path)
    assert "2 steps" in said["train"]
    assert "primes 5..101, greedy" in said["eval"]
    assert "index.html" in said["report"]
    assert "<answer>" in said["inspect"]
    assert "the model of step 2" in said["export"]
    assert "Find y with 7 * y = 1 (mod 13)" in said["play"]


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"primezero {version('primezero')}\n"
