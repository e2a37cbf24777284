"""A run whose launcher is killed outright, and one whose worker stands still for ever."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import psutil
import pytest
from whole_runs import Run, check_records, leftovers

from launch.segments import used_by

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CLEAN_S = 10.0
RAYS_HELPERS = ("raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent")


def listening(run: Run) -> set[int]:
    """TCP ports that the run's processes listen on."""
    pids = {process.pid for process in run.processes()}
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.pid in pids and c.status == psutil.CONN_LISTEN}


def may_be_used(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def test_of_a_run_whose_launcher_is_killed_nothing_is_left_and_the_same_command_goes_on(start):
    command = {"run.steps": 10_000, "run.checkpoint_every": 2, "run.time_limit_s": "none"}
    before = leftovers()
    run = start(**command)
    run.wait_for(r"step +3/")
    helpers = {" ".join([process.name(), *process.cmdline()]) for process in run.processes()}
    assert [kind for kind in RAYS_HELPERS if not any(kind in helper for helper in helpers)] == [], helpers
    segments, ports = used_by(run.processes()), listening(run)
    assert segments
    assert ports
    (private,) = run.temporary.glob("primezero-*")
    assert (private / "stream").is_socket()
    assert private.stat().st_mode & 0o077 == 0
    run.process.kill()
    killed = time.monotonic()
    while run.processes() or private.exists():
        assert time.monotonic() - killed < CLEAN_S, [*run.processes(), private]
        time.sleep(0.05)
    assert [path for path in segments if path.exists()] == []
    assert leftovers() <= before
    assert [port for port in ports if not may_be_used(port)] == []
    assert str(private) in (run.folder / "logs/reaper.log").read_text()

    saved = max(int(path.name.removeprefix("step-")) for path in (run.folder / "checkpoints").glob("step-*"))
    again = start(**command | {"run.steps": saved + 2})
    output = again.finish()
    assert again.process.returncode == 0, output
    assert f"resuming from {run.folder / 'checkpoints'}" in output
    check_records(again)
    assert not Path(run.folder / "leftovers.json").exists()


def test_a_worker_that_stands_still_for_ever_is_ended_and_started_again(start):
    run = start(**{"run.steps": 10_000, "run.time_limit_s": "none", "run.hang_timeout_s": 45})
    run.wait_for(r"step +2/")
    stopped = run.process_named("RolloutProcess")
    stopped.suspend()
    line = run.wait_for("is started again")
    assert line.startswith("rollout-0 hangs: no sign of life for 45 s (run.hang_timeout_s); rollout-0 is started again")
    assert not stopped.is_running()
    for _ in range(2):  # without workers a learner can finish the step that it is in
        run.wait_for(r"^step +\d+/")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    check_records(run)
    (restart,) = run.records("restarts.jsonl")
    assert restart["process"] == "rollout-0"
    assert "hangs" in restart["reason"]
