"""Checkouts with the start scripts, on machines with and without GPUs, in which they can be run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GPU = "NVIDIA A100-SXM4-80GB, 580.65.06, 81920 MiB"
UUIDS = [f"GPU-{letter * 4}-{number}" for number, letter in enumerate("abcdefgh")]


def make_tree(folder: Path) -> Path:
    """A checkout with the scripts, their configurations, and this environment as its .venv."""
    (folder / "launch").mkdir()
    for script in ("gpu_run.sh", "single_a100.sh", "second_gpu.sh", "cluster.sh"):
        shutil.copy(ROOT / "launch" / script, folder / "launch")
    shutil.copytree(ROOT / "launch/configs", folder / "launch/configs")
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    return folder


def make_gpu_tree(folder: Path, gpus: int = 1) -> Path:
    """A checkout on a machine with a driver; of its environment everything does nothing but tell what it was asked."""
    tree = make_tree(folder)
    (tree / ".venv/bin").unlink()
    for name in ("primezero", "hf", "python", "ray"):
        write(tree / ".venv/bin" / name, f'echo "{name} $*"')
    write_smi(tree, gpus)
    write(tree / "launch/setup.sh", 'echo "setup $*"')
    return tree


def write_smi(tree: Path, gpus: int, mig: str = "Disabled") -> None:
    """An nvidia-smi that tells of so many GPUs; mig: whether they are in slices."""
    lines = "\n".join(f"echo '{number}, {UUIDS[number]}, {mig}, {GPU}'" for number in range(gpus))
    fields = "index,uuid,mig.mode.current,name,driver_version,memory.total"
    write(tree / "bin/nvidia-smi", f"[ $1 = --query-gpu={fields} ] || exit 6\n{lines}")


def write(path: Path, script: str) -> None:
    """A script in a checkout."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(tree: Path, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script of a checkout, to its end."""
    path = f"{tree / 'bin'}:{os.environ['PATH']}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "HOME": str(tree)} | environment
    command = ["bash", str(tree / "launch" / script), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
