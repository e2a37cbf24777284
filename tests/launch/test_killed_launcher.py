"""A run whose launcher is killed outright, and one whose worker stands still for ever."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from whole_runs import check_records

from launch.marked_processes import lives
from launch.segments import used_by

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

# On an idle machine it is two; Ray's helpers would stay for minutes, files and segments for good.
CLEAN_S = 60.0
RAYS_HELPERS = ("raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent")


def listening(pids: set[int | None]) -> set[int]:
    """TCP ports that these processes listen on. None: whoever has let go of its files, but not yet of its ports."""
    connections = psutil.net_connections("tcp")
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN and c.pid in pids}


def test_of_a_run_whose_launcher_is_killed_nothing_is_left_and_the_same_command_goes_on(start, record_property):
    command = {"run.steps": 10_000, "run.checkpoint_every": 2, "run.time_limit_s": "none"}
    run = start(**command)
    run.wait_for(r"step +3/")
    helpers = run.commands()
    assert [kind for kind in RAYS_HELPERS if not any(kind in helper for helper in helpers)] == [], helpers
    pids: set[int | None] = {process.pid for process in run.processes()}
    segments, ports = used_by(run.processes()), listening(pids)
    assert segments
    assert ports
    (private,) = run.temporary.glob("primezero-*")
    assert (private / "stream").is_socket()
    assert private.stat().st_mode & 0o077 == 0
    run.process.kill()
    killed = time.monotonic()
    # A process that is about to end has no environment any more to be known by, but still its ports.
    while run.processes() or private.exists() or ports & listening(pids | {None}):
        assert time.monotonic() - killed < CLEAN_S, [*run.processes(), private, ports & listening(pids | {None})]
        time.sleep(0.05)
    record_property("seconds until nothing is left", round(time.monotonic() - killed, 2))
    assert [path for path in segments if path.exists()] == []
    assert run.segments.left() == set()
    assert str(private) in (run.folder / "logs/reaper.log").read_text()

    saved = max(int(path.name.removeprefix("step-")) for path in (run.folder / "checkpoints").glob("step-*"))
    again = start(**command | {"run.steps": saved + 2})
    output = again.finish()
    assert again.process.returncode == 0, output
    assert f"resuming from {run.folder / 'checkpoints'}" in output
    check_records(again)
    assert not Path(run.folder / "leftovers.json").exists()


@pytest.mark.slow
def test_a_worker_that_stands_still_for_ever_is_ended_and_started_again(start):
    run = start(**{"run.steps": 10_000, "run.time_limit_s": "none", "run.hang_timeout_s": 45})
    run.wait_for(r"step +2/")
    stopped = run.process_named("RolloutProcess")
    stopped.suspend()
    line = run.wait_for("is started again")
    assert line.startswith("rollout-0 hangs: no sign of life for 45 s (run.hang_timeout_s); rollout-0 is started again")
    assert not lives(stopped)
    for _ in range(2):  # without workers a learner can finish the step that it is in
        run.wait_for(r"^step +\d+/")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    check_records(run)
    (restart,) = run.records("restarts.jsonl")
    assert restart["process"] == "rollout-0"
    assert "hangs" in restart["reason"]
