import json
import re
import subprocess
import sys

import pytest

from launch.cli import main
from launch.plan import devices
from launch.plan.devices import GIB, Device, device_here, devices_here, smallest
from shared.errors import InstallationError

CONFIG = ["--config", "launch/configs/single_a100.toml"]


def test_a_plan_is_shown_and_written(capsys, tmp_path):
    file = tmp_path / "plan.json"
    assert main(["plan", "--model", "qwen2.5-3b", "--device", "a100-80gb", *CONFIG, "--json", str(file)]) == 0
    assert "attention cache" in capsys.readouterr().out
    plan = json.loads(file.read_text())
    assert plan["fits"]
    assert plan["advice"] is None
    [gpu] = plan["devices"]
    assert sum(part["size"] for part in gpu["parts"] if part["counted"]) + gpu["free"] < gpu["device"]["memory"]


def test_what_does_not_fit_fails_with_advice(capsys, tmp_path):
    file = tmp_path / "plan.json"
    arguments = ["plan", "--model", "qwen2.5-7b", "--device-gib", "79", *CONFIG, "--json", str(file)]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "missing" in said.out
    assert "This fits: --learner.max_tokens 4096" in said.err
    assert json.loads(file.read_text())["advice"]["changes"]
    assert main([*arguments, "--learner.max_tokens", "4096"]) == 0


def test_the_vocabulary_of_a_shape_can_be_given(capsys):
    for words, shown in [([], "0.49B"), (["--vocabulary", "1000"], "0.36B")]:
        assert main(["plan", "--model", "qwen2.5-0.5b", "--device", "h200", *words, *CONFIG]) == 0
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "qwen2.5-3b", "--device", "b200"], "none of a100-40gb"),
        (["--model", "gpt", "--device", "h200"], "neither a folder"),
        (["--model", "qwen2.5-3b"], "no GPU was found: .* name it: --device a100-80gb"),
        (["--model", "qwen2.5-3b", "--device-gib", "-3"], "--device-gib -3: the GiB of a GPU, more than 0"),
    ],
)
def test_what_cannot_be_planned_says_why(capsys, monkeypatch, words, said):
    monkeypatch.setenv("PATH", "")
    assert main(["plan", *words]) == 1
    assert re.search(said, capsys.readouterr().err)


def test_planning_imports_no_torch():
    code = (
        "import sys; from launch.cli import main; "
        f"main(['plan', '--model', 'qwen2.5-3b', '--device', 'h200', *{CONFIG!r}]); "
        "sys.exit(bool({'torch', 'vllm', 'deepspeed', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def smi(folder, monkeypatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(devices.shutil, "which", lambda _: str(program))


# Of the first the driver keeps 896 MiB for itself; of the other it does not say.
LISTED = """case $1 in *index,uuid,mig.mode.current,name,memory.total,memory.reserved,memory.used) ;; *) exit 2 ;; esac
cat <<'END'
0, GPU-aaaa-1, Disabled, NVIDIA A100-SXM4-80GB, 81920, 896, 1024
1, GPU-bbbb-2, [N/A], another, 40960, [N/A], 0
END"""


def test_the_gpus_here_are_what_their_driver_tells(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, LISTED)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device = device_here()
    assert (device.name, device.memory, device.used) == ("NVIDIA A100-SXM4-80GB", 81024 * 2**20, GIB)
    assert [each.name for each in devices_here()] == ["NVIDIA A100-SXM4-80GB", "another"]
    assert smallest(devices_here()) == Device("another", 40 * GIB)


@pytest.mark.parametrize(
    ("visible", "seen"), [("1", ["another"]), ("1,0", ["another", "NVIDIA A100-SXM4-80GB"]), ("GPU-bb", ["another"])]
)
def test_only_gpus_that_may_be_seen_count(tmp_path, monkeypatch, visible, seen):
    smi(tmp_path, monkeypatch, LISTED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [each.name for each in devices_here()] == seen


@pytest.mark.parametrize(
    ("visible", "refused"),
    [(None, True), ("0", True), ("GPU-aaaa", True), ("1", False), ("MIG-cccc", True), ("MIG-GPU-aaaa-1/0/0", True)],
)
def test_slices_of_a_gpu_are_refused_where_they_would_be_used(tmp_path, monkeypatch, visible, refused):
    """nvidia-smi may tell of no memory then."""
    smi(tmp_path, monkeypatch, LISTED.replace("Disabled", "Enabled").replace("81920, 896, 1024", "[N/A], [N/A], [N/A]"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if refused:
        with pytest.raises(InstallationError, match=r"in slices here \(MIG\), which a run cannot use"):
            devices_here()
    else:
        assert [each.name for each in devices_here()] == ["another"]


def test_none_that_may_be_seen_is_none(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, LISTED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(InstallationError, match="CUDA_VISIBLE_DEVICES=7 is none of this machine's"):
        devices_here()


@pytest.mark.parametrize("script", ["exit 9", "true", "echo 'No devices were found'"])
def test_a_driver_without_a_gpu_is_no_gpu(tmp_path, monkeypatch, script):
    smi(tmp_path, monkeypatch, script)
    with pytest.raises(InstallationError, match="no GPU was found"):
        device_here()
