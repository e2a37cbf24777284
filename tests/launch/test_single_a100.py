"""The start script for one A100, on a machine without one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import huggingface_hub.cli.download
import launch_scripts
import pytest
from huggingface_hub.cli.hf import app
from launch_scripts import ROOT, make_gpu_tree, make_tree, write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path)


@pytest.fixture
def gpu_tree(tmp_path: Path) -> Path:
    return make_gpu_tree(tmp_path)


def run(tree: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return launch_scripts.run(tree, "single_a100.sh", *words, **environment)


def test_a_dry_run_without_a_gpu_shows_everything_and_starts_nothing(tree):
    done = run(tree, "--dry-run")
    assert done.returncode == 0, done.stderr
    for shown in (
        "no GPU was found",
        "disk: ",
        "memory: ",
        "qwen2.5-3b, 3.09B parameters, on a100-80gb",
        "nothing was",
    ):
        assert shown in done.stdout
    assert sorted(path.name for path in tree.iterdir()) == [".venv", "launch"]


def test_a_dry_run_of_what_does_not_fit_fails_with_advice(tree):
    done = run(tree, "--dry-run", "--learner.max_tokens", "131072", "--learner.offload_optimizer", "false")
    assert done.returncode == 1
    assert "This fits: " in done.stderr


def test_without_a_gpu_and_without_dry_run_it_says_so_and_fails(tree):
    done = run(tree)
    assert done.returncode == 1
    assert "no GPU was found" in done.stderr


def test_on_a_gpu_it_sets_up_fetches_the_model_and_trains(gpu_tree):
    done = run(gpu_tree, "--learner.lr", "2e-6")
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "setup gpu" in said
    assert any("NVIDIA A100-SXM4-80GB" in line for line in said)
    assert said[-1] == (
        "primezero train --config launch/configs/single_a100.toml --model.path models/Qwen2.5-3B-Instruct "
        "--learner.lr 2e-6"
    )


def test_what_is_fetched_is_the_whole_model_without_weights_in_other_formats(gpu_tree, monkeypatch):
    """As the hub's own command line understands it."""
    write(gpu_tree / ".venv/bin/hf", """printf '%s\\n' "$@" >asked""")
    assert run(gpu_tree).returncode == 0
    asked = {}

    def fetch(**words):
        asked.update(words)
        return ""

    monkeypatch.setattr(huggingface_hub.cli.download, "snapshot_download", fetch)
    app((gpu_tree / "asked").read_text().splitlines(), standalone_mode=False)
    assert asked["repo_id"] == "Qwen/Qwen2.5-3B-Instruct"
    assert asked["local_dir"] == "models/Qwen2.5-3B-Instruct"
    assert (asked["allow_patterns"], asked["ignore_patterns"]) == (None, ["*.bin", "*.pth"])


def test_model_configuration_and_resuming_can_be_said(gpu_tree):
    (gpu_tree / "mine").mkdir()
    (gpu_tree / "mine/config.json").write_text("{}")
    (gpu_tree / "mine.toml").touch()
    done = run(gpu_tree, MODEL="mine", CONFIG="mine.toml", RESUME="1")
    assert done.stdout.splitlines()[-1] == "primezero train --config mine.toml --model.path mine --resume"
    absent = run(gpu_tree, MODEL="absent")
    assert absent.returncode == 1
    assert "MODEL=absent is no model folder" in absent.stderr
    assert run(gpu_tree, CONFIG="absent.toml").returncode == 1


def test_where_no_hub_is_reachable_it_says_where_the_model_goes(gpu_tree):
    write(gpu_tree / ".venv/bin/hf", "exit 1")
    done = run(gpu_tree)
    assert done.returncode == 1
    assert f"into {gpu_tree}/models/Qwen2.5-3B-Instruct, or name a folder" in done.stderr


def test_a_download_that_was_cut_short_is_gone_on_with(gpu_tree):
    """Its first file is config.json."""
    model = "models/Qwen2.5-3B-Instruct"
    write(gpu_tree / ".venv/bin/hf", f"mkdir -p {model}; touch {model}/config.json; exit 1")
    assert run(gpu_tree).returncode == 1
    planned = run(gpu_tree, "--dry-run")
    assert "a run downloads Qwen/Qwen2.5-3B-Instruct" in planned.stdout
    assert "plan --model qwen2.5-3b" in planned.stdout
    named = run(gpu_tree, MODEL=model)
    assert "a download into it has not ended" in named.stderr
    write(gpu_tree / ".venv/bin/hf", "echo $* >>asked")
    for _ in range(2):
        assert run(gpu_tree).returncode == 0
    assert (gpu_tree / "asked").read_text().count(f"--local-dir {model}") == 1


@pytest.mark.parametrize("folder", ["runs", "models", "models/Qwen2.5-3B-Instruct"])
def test_folders_that_are_not_the_user_s_to_write_are_told_before_anything_is_set_up(gpu_tree, folder):
    """As where they are mounted into the image, whose user is another than that of the machine outside."""
    (gpu_tree / folder).parent.mkdir(exist_ok=True)
    (gpu_tree / folder).touch()  # for root, too, who may write into any folder
    done = run(gpu_tree)
    assert done.returncode == 1
    assert f"cannot be written by this user, number {os.getuid()}: make that folder" in done.stderr
    assert "setup gpu" not in done.stdout
    planned = run(gpu_tree, "--dry-run")
    assert planned.returncode == 0
    assert "cannot be written by this user" in planned.stdout
    if folder == "runs":
        assert run(gpu_tree, "--run.folder", "elsewhere").returncode == 0


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_of_another_user_cannot_be_written(gpu_tree):
    (gpu_tree / "runs").mkdir(mode=0o500)
    assert f"{gpu_tree}/runs cannot be written" in run(gpu_tree).stderr


def test_a_driver_that_is_too_old_is_named(gpu_tree):
    write(gpu_tree / ".venv/bin/python", "exit 1")
    done = run(gpu_tree)
    assert done.returncode == 1
    assert "the driver is older than its CUDA" in done.stderr


def test_scripts_are_strict_and_parse():
    for script in ROOT.glob("launch/**/*.sh"):
        assert "set -euo pipefail" in script.read_text(), script
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(
    "words", [["--dryrun"], ["dry-run"], ["--resume"], ["--run.steps", "3", "4"], ["--run.steps=3", "4"]]
)
def test_a_word_that_is_none_is_refused_before_a_model_is_fetched(gpu_tree, words):
    done = run(gpu_tree, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"single_a100: '{words[-1]}' is not understood: there are --dry-run and")
    assert done.stdout == ""


def test_values_are_whatever_follows_a_key(gpu_tree):
    words = ["--run.name", "mine", "--learner.lr=1", "--rollout.seed", "-1"]
    done = run(gpu_tree, *words)
    assert done.stdout.splitlines()[-1].endswith(" ".join(words))


def test_a_seed_without_a_number_is_told_in_the_demo_s_own_words():
    command = ["bash", str(ROOT / "launch/cpu_demo.sh"), "--seed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "cpu_demo: --seed needs a number\n")
