"""What is on another machine, and goes with the run, or with whoever keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import until

from launch import actors
from launch.actors import MachineKeeper
from launch.marked_processes import VARIABLE, lives
from launch.plan.devices import GIB, Device


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[MachineKeeper]:
    mask = os.umask(0o022)
    try:
        kept = MachineKeeper(tmp_path / "runs/mine", "10.0.0.2")
        yield kept
        if kept.folder().exists():
            kept.close()
    finally:
        os.umask(mask)


def start_marked(folder: Path, name: str) -> psutil.Process:
    env = os.environ | {VARIABLE: f"{folder}/{name}"}
    return psutil.Process(subprocess.Popen(["sleep", "100"], env=env).pid)


@pytest.mark.integration
def test_it_knows_and_ends_the_processes_of_a_name_alone(keeper):
    one, other = (start_marked(keeper.folder(), name) for name in ("rollout-0", "rollout-1"))
    assert set(keeper.note()) == {"rollout-0", "rollout-1"}
    until(lambda: keeper.note()["rollout-0"] == one.memory_info().rss > 0)  # it grows while it starts
    assert keeper.end(["rollout-0"]) == []
    assert not lives(one)
    assert lives(other)
    assert set(keeper.note()) == {"rollout-1"}
    keeper.close()
    assert not lives(other)


def test_it_leaves_neither_folder_nor_record(keeper, tmp_path):
    run_folder = tmp_path / "runs/mine"
    assert keeper.folder().stat().st_mode & 0o777 == 0o700
    # Beside the launcher's, where machines share the run's folder.
    assert [path.name for path in run_folder.glob("leftovers*")] == ["leftovers-10.0.0.2.json"]
    keeper.close()
    assert not keeper.folder().exists()
    assert list(run_folder.glob("leftovers*")) == []


def test_it_reads_what_is_there(keeper, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert keeper.read(tmp_path / "file") == b"content"
    assert keeper.read(tmp_path / "none") is None


def test_the_fullest_of_the_gpus_that_are_used_counts_though_ray_hides_them(keeper, monkeypatch):
    def found() -> list[Device]:
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        return [Device("a", 80 * GIB, 10 * GIB), Device("b", 80 * GIB, 60 * GIB), Device("c", 10 * GIB)]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(actors, "devices_here", found)
    assert [keeper.gpu_room(count) // GIB for count in (1, 2, 3)] == [70, 20, 10]


KEEPS = """
import sys, time
from pathlib import Path
from launch.actors import MachineKeeper
keeper = MachineKeeper(Path(sys.argv[1]), "10.0.0.2")
print(keeper.folder(), flush=True)
time.sleep(100)
"""


def test_killed_with_its_children_as_ray_does_it_leaves_nothing(tmp_path):
    script = [sys.executable, "-c", KEEPS, str(tmp_path / "mine")]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        marked = start_marked(folder, "rollout-0")
        keeper = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while len(keeper.children(recursive=True)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for each in (keeper, *keeper.children()):
            each.kill()
    deadline = time.monotonic() + 60
    while folder.exists() or lives(marked):
        assert time.monotonic() < deadline
        time.sleep(0.1)
