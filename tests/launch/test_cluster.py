"""Whole runs over several machines of a Ray cluster, which here are one machine at two of its addresses."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from placed_runs import CONFIGS, TINY
from whole_runs import Run, check_records

from launch.marked_processes import end, marked
from launch.private_folder import RECORD_FILE
from shared.config_file import load_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

HERE, OTHER = "127.0.0.2", "127.0.0.3"
ROOT = Path(__file__).parents[2]


@dataclass
class Machines:
    """address: of the Ray cluster; token: for it; temporary: where what is on the other machine has its folders

    process: has started it
    """

    address: str
    token: str
    temporary: Path
    process: psutil.Process

    def processes(self) -> list[psutil.Process]:
        """Ray's own, and all that it has started."""
        return self.process.children(recursive=True)

    def private_folders(self) -> list[Path]:
        return sorted(self.temporary.glob("primezero-*"))


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    token = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="pz", dir="/tmp") as folder:
        env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "TMPDIR": folder}
        env |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(Path(__file__).parent / "two_machines.py")]
        with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = next(line.strip() for line in process.stdout if line.startswith(HERE))
            made = Machines(address, token, Path(folder), psutil.Process(process.pid))
            yield made
            helpers = made.processes()
            process.communicate(timeout=120)
            # Some would stay for a while, and have files in the folder until then.
            assert end(helpers, leave_s=0, killed_s=60) == []


@pytest.fixture
def start_there(start, machines: Machines, monkeypatch) -> Callable[..., Run]:
    """Starts a run with one learner rank on this machine, a worker on each."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", machines.token)
    placed = {"placement.ray_address": machines.address, "learner.ranks": 1}

    def begin(**overrides: object) -> Run:
        run = start(config=CONFIGS / "cluster.toml", **(TINY | placed | overrides))
        # What is a run's own is known by what the launcher's environment has; that of what Ray starts has it not.
        run.segments.watch(machines.processes)
        return run

    return begin


def of_the_run(machines: Machines, run: Run) -> dict[str, set[psutil.Process]]:
    """Its processes on both machines, by name, those of each in a folder of its own."""
    found: dict[str, set[psutil.Process]] = {}
    for folder in (*run.temporary.glob("primezero-*"), *machines.private_folders()):
        found |= {mark.rpartition("/")[2]: processes for mark, processes in marked(f"{folder}/").items()}
    return found


def peers(processes: set[psutil.Process]) -> set[str]:
    connections = [c for process in processes for c in process.net_connections("tcp")]
    return {c.raddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_ESTABLISHED}


def test_a_worker_on_another_machine_joins_over_tcp_and_nothing_of_it_stays(start_there, machines):
    run = start_there()
    run.wait_for(r"step +1/")
    [folder] = machines.private_folders()
    there = marked(f"{folder}/")
    assert {mark.rpartition("/")[2] for mark in there} == {"rollout-0"}
    assert HERE in peers(there[f"{folder}/rollout-0"])
    assert {"learner-0", "rollout-0", "rollout-1"} <= set(of_the_run(machines, run))
    assert (run.folder / f"leftovers-{OTHER}.json").is_file()
    output = run.finish()
    assert run.process.returncode == 0, output
    check_records(run)
    assert load_config(run.folder / "config.toml").sync.transport == "nccl"
    assert machines.private_folders() == []
    assert marked(f"{folder}/") == {}
    assert list(run.folder.glob(RECORD_FILE.replace(".", "*."))) == []


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_nothing_on_the_other_machine(start_there, machines):
    run = start_there(**{"run.steps": 10_000})
    run.wait_for(r"step +1/")
    processes = {p for group in of_the_run(machines, run).values() for p in group}
    assert len(processes) >= 5  # three of ours, two engines
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 120
    while machines.private_folders() or any(p.is_running() for p in processes):
        assert time.monotonic() < deadline, [p for p in processes if p.is_running()]
        time.sleep(0.5)


@pytest.mark.slow
def test_an_engine_that_dies_on_another_machine_is_started_again_there(start_there, machines):
    run = start_there(**{"run.steps": 10_000})
    run.wait_for(r"step +2/")
    [folder] = machines.private_folders()
    [first] = [p for p in marked(f"{folder}/")[f"{folder}/rollout-0"] if "EngineCore" in p.name()]
    first.kill()
    line = run.wait_for("rollout-0")
    assert "engine" in line
    deadline = time.monotonic() + 120
    while not any("EngineCore" in p.name() for p in marked(f"{folder}/").get(f"{folder}/rollout-0", ())):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    joined = len(run.records("metrics.jsonl"))
    while not any(s["workers"]["workers_joined"] for s in run.records("metrics.jsonl")[joined - 1 :]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    check_records(run)
    assert [restart["process"] for restart in run.records("restarts.jsonl")] == ["rollout-0"]


@pytest.mark.slow
def test_a_machine_that_is_lost_takes_its_worker_and_the_run_goes_on_even_when_its_learner_dies(start_there, machines):
    run = start_there(**{"run.steps": 10_000})
    run.wait_for(r"step +2/")
    [folder] = machines.private_folders()
    [raylet] = [p for p in machines.processes() if p.name() == "raylet" and f"--node_ip_address={OTHER}" in p.cmdline()]
    raylet.kill()
    run.wait_for(f"machine {OTHER} is lost, and with it rollout-0: the run goes on")
    gone = run.step()
    deadline = time.monotonic() + 120
    while run.step() < gone + 3 or folder.exists() or marked(f"{folder}/"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    for process in of_the_run(machines, run)["learner-0"]:
        process.kill()
    run.wait_for("learner is started again")
    run.wait_for(r"step +\d+/")
    gone, deadline = run.step(), time.monotonic() + 120
    while run.step() < gone + 3:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    check_records(run)
