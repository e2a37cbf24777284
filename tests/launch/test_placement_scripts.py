"""The start scripts for two GPUs, and for many machines."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from launch_scripts import UUIDS, make_gpu_tree, make_tree, run, write_smi

MODEL = "--model.path models/Qwen2.5-3B-Instruct"


@pytest.mark.parametrize(
    ("script", "gpus", "shown"),
    [
        ("second_gpu.sh", "2 GPUs, each a100-80gb", ["GPU of each engine\n", "GPU of each learner rank\n"]),
        ("cluster.sh", "8 GPUs, each a100-80gb", ["GPU of each engine (4 such)", "GPU of each learner rank (4 such)"]),
    ],
)
def test_a_dry_run_without_a_gpu_shows_the_plan_of_each_device_and_starts_nothing(tmp_path, script, gpus, shown):
    done = run(make_tree(tmp_path), script, "--dry-run")
    assert done.returncode == 0, done.stderr
    for each in ("no GPU was found", "disk: ", "memory: ", f"qwen2.5-3b, 3.09B parameters, on {gpus}", *shown):
        assert each in done.stdout
    assert done.stdout.endswith("nothing was started\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".venv", "launch"]


def test_overrides_reach_the_plan(tmp_path):
    done = run(make_tree(tmp_path), "second_gpu.sh", "--dry-run", "--learner.ranks", "3")
    assert "on 4 GPUs" in done.stdout
    assert "GPU of each learner rank (3 such)" in done.stdout


@pytest.mark.parametrize(
    ("gpus", "words", "trains"),
    [
        (2, [], []),
        (4, [], ["--learner.ranks", "3"]),
        (
            4,
            ["--rollout.workers", "2", "--learner.ranks", "2"],
            ["--learner.ranks", "3", "--rollout.workers", "2", "--learner.ranks", "2"],
        ),
    ],
)
def test_every_gpu_but_the_first_gets_a_learner_rank(tmp_path, gpus, words, trains):
    done = run(make_gpu_tree(tmp_path, gpus), "second_gpu.sh", *words)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "setup gpu" in said
    assert sum("NVIDIA A100" in line for line in said) == gpus
    assert said[-1] == " ".join(["primezero train --config launch/configs/second_gpu.toml", MODEL, *trains])


@pytest.mark.parametrize("visible", ["4,5", "5, 4", f"{UUIDS[4]},{UUIDS[5]}", "GPU-eeee,7"])
def test_gpus_that_cuda_is_not_to_see_get_none(tmp_path, visible):
    tree = make_gpu_tree(tmp_path, 8)
    done = run(tree, "second_gpu.sh", CUDA_VISIBLE_DEVICES=visible)
    assert done.stdout.splitlines()[-1] == f"primezero train --config launch/configs/second_gpu.toml {MODEL}"


@pytest.mark.parametrize("visible", ["", "9", "GPU-none"])
def test_where_cuda_is_to_see_none_there_is_none(tmp_path, visible):
    hidden = run(make_gpu_tree(tmp_path, 8), "second_gpu.sh", CUDA_VISIBLE_DEVICES=visible)
    assert "no GPU was found" in hidden.stderr


@pytest.mark.parametrize(("mig", "visible"), [("Disabled", "MIG-1,MIG-2"), ("Enabled", "0,1")])
def test_slices_of_a_gpu_are_refused_before_anything_is_set_up_and_fetched(tmp_path, mig, visible):
    tree = make_gpu_tree(tmp_path, 2)
    write_smi(tree, 2, mig)
    done = run(tree, "second_gpu.sh", CUDA_VISIBLE_DEVICES=visible)
    assert (done.returncode, done.stdout) == (1, "")
    assert "second_gpu: a GPU is in slices here (MIG), which a run cannot use" in done.stderr
    planned = run(tree, "second_gpu.sh", "--dry-run", CUDA_VISIBLE_DEVICES=visible)
    assert planned.returncode == 0
    assert "--device a100-80gb" in planned.stdout


def test_one_gpu_is_too_few_for_two_sides(tmp_path):
    done = run(make_gpu_tree(tmp_path), "second_gpu.sh")
    assert done.returncode == 1
    assert "1 GPU was found, and 2 are needed" in done.stderr
    assert "single_a100.sh" in done.stderr
    assert "primezero train" not in done.stdout


def test_none_is_too_few_for_anything(tmp_path):
    done = run(make_tree(tmp_path), "second_gpu.sh")
    assert done.returncode == 1
    assert "no GPU was found" in done.stderr


def test_without_an_address_a_cluster_is_not_trained_on_and_it_says_how_to_start_one(tmp_path):
    done = run(make_gpu_tree(tmp_path), "cluster.sh", RAY_ADDRESS="")
    assert done.returncode == 1
    assert "RAY_ADDRESS is not set: 'bash launch/cluster.sh head'" in done.stderr
    assert "primezero train" not in done.stdout


def test_with_an_address_it_trains_there(tmp_path):
    tree = make_gpu_tree(tmp_path)
    done = run(tree, "cluster.sh", "--rollout.workers", "6", RAY_ADDRESS="10.0.0.1:6379", RESUME="1")
    assert done.stdout.splitlines()[-1] == (
        f"primezero train --config launch/configs/cluster.toml {MODEL} --resume "
        "--placement.ray_address 10.0.0.1:6379 --rollout.workers 6"
    )


def test_a_head_is_started_with_a_token_and_says_what_others_are_given(tmp_path):
    done = run(make_gpu_tree(tmp_path), "cluster.sh", "head", "10.0.0.1")
    assert done.returncode == 0, done.stderr
    assert "bash launch/cluster.sh join 10.0.0.1:6379" in done.stdout
    assert "RAY_ADDRESS=10.0.0.1:6379" in done.stdout


def test_a_machine_joins_only_with_the_token_where_somebody_listens(tmp_path: Path):
    tree = make_gpu_tree(tmp_path)
    refused = run(tree, "cluster.sh", "join", "10.0.0.1:6379")
    assert refused.returncode == 1
    assert ".ray/auth_token is missing: copy it" in refused.stderr
    (tree / ".ray").mkdir()
    (tree / ".ray/auth_token").write_text("0" * 64)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = "{}:{}".format(*head.getsockname())
        joined = run(tree, "cluster.sh", "join", address)
    assert joined.returncode == 0, joined.stderr
    assert f"part of the Ray cluster at {address}" in joined.stdout
    alone = run(tree, "cluster.sh", "join", address)
    assert alone.returncode == 1
    assert alone.stderr.startswith(f"cluster: nobody answers at {address}: is that what")
    assert "ray start" not in alone.stdout


@pytest.mark.parametrize("words", [[], ["10.0.0.1"], ["$(date):1"], ["http://10.0.0.1:6379"]])
def test_a_machine_joins_nothing_without_an_address(tmp_path: Path, words):
    refused = run(make_gpu_tree(tmp_path), "cluster.sh", "join", *words)
    assert refused.returncode == 1
    assert refused.stderr == f"cluster: join needs HOST:PORT, as the head says it, not '{' '.join(words)}'\n"
