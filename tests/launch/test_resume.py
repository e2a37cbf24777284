"""Runs that died and go on from their last checkpoint."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import psutil
import pytest
from whole_runs import Run, check_records, loaded

from launch.segments import used_by
from learner.audit import audit

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


# On an idle machine it is two; Ray's helpers would stay for minutes, files and segments for good.
CLEAN_S = 60.0
RAYS_HELPERS = ("raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent")


def listening(pids: set[int | None]) -> set[int]:
    """TCP ports that these processes listen on. None: whoever has let go of its files, but not yet of its ports."""
    connections = psutil.net_connections("tcp")
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN and c.pid in pids}


def newest_checkpoint(run: Run) -> Path:
    return max((run.folder / "checkpoints").glob("step-*"))


def version_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def test_after_its_launcher_is_killed_and_after_it_is_given_up_the_same_command_goes_on(start, record_property):
    command = {"run.steps": 10_000, "run.checkpoint_every": 2, "run.time_limit_s": "none", "run.max_restarts": 0}
    first = start(**command)
    first.wait_for(r"step +3/")
    helpers = first.commands()
    assert [kind for kind in RAYS_HELPERS if not any(kind in helper for helper in helpers)] == [], helpers
    pids: set[int | None] = {process.pid for process in first.processes()}
    segments, ports = used_by(first.processes()), listening(pids)
    assert segments
    assert ports
    (private,) = first.temporary.glob("primezero-*")
    assert (private / "stream").is_socket()
    assert private.stat().st_mode & 0o077 == 0
    first.process.kill()
    killed = time.monotonic()
    # A process that is about to end has no environment any more to be known by, but still its ports.
    while first.processes() or private.exists() or ports & listening(pids | {None}):
        assert time.monotonic() - killed < CLEAN_S, [*first.processes(), private, ports & listening(pids | {None})]
        time.sleep(0.05)
    record_property("seconds until nothing is left", round(time.monotonic() - killed, 2))
    assert [path for path in segments if path.exists()] == []
    assert first.segments.left() == set()
    assert str(private) in (first.folder / "logs/reaper.log").read_text()
    assert list(first.temporary.iterdir()) == []
    saved = newest_checkpoint(first)

    second = start(**command)
    second.wait_for(f"resuming from {saved}")
    second.wait_for(rf"step +{version_of(saved) + 2}/")
    second.process_named("RolloutProcess").kill()
    output = second.finish()
    assert second.process.returncode == 1, output
    assert re.search(r"primezero: the process of rollout-0 died \(run.max_restarts=0\)", output), output
    assert "Given again, the same command goes on from the last checkpoint" in output
    assert "Traceback" not in output
    saved = newest_checkpoint(second)
    version = version_of(saved)
    assert version >= 4

    third = start(**command | {"run.steps": version + 3})
    output = third.finish()
    assert third.process.returncode == 0, output
    assert f"resuming from {saved}" in output
    check_records(third)
    evaluations = [e["version"] for e in third.records("evaluations.jsonl")]
    assert evaluations == sorted({*range(0, version + 3, 2), version + 3})
    summary = json.loads((third.folder / "summary.json").read_text())
    assert summary["steps"] == version + 3
    assert loaded(third.folder / "model")
    assert not (third.folder / "leftovers.json").exists()

    fourth = start(**command | {"run.steps": version + 3})
    output = fourth.finish()
    assert fourth.process.returncode == 1
    assert "raise --run.steps to go on" in output


@pytest.mark.slow
def test_interrupted_and_resumed_a_run_is_the_uninterrupted_one_to_the_bit(start):
    """The learner killed in the middle of a step, and a Ctrl-C after which the same command goes on."""
    command = {"run.steps": 30, "run.checkpoint_every": 3, "selfplay.max_staleness": 0}
    whole = start("whole", **command)
    output = whole.finish()
    assert whole.process.returncode == 0, output

    run = start("interrupted", **command)
    run.wait_for(r"^step +4/")
    run.process_named("LearnerProcess").kill()
    run.wait_for(r"is started again from step \d")
    run.wait_for(r"^step +1\d/")
    run.press_ctrl_c()
    run.finish()
    run = start("interrupted", **command)
    output = run.finish()
    assert run.process.returncode == 0, output
    assert "resuming from " in output

    after, expected = (loaded(each.folder / "model") for each in (run, whole))
    assert after.keys() == expected.keys()
    assert all(weight.equal(expected[name]) for name, weight in after.items())
    assert not all(weight.equal(expected[name]) for name, weight in loaded(run.model).items())  # it did learn
    assert run.records("evaluations.jsonl")[-1]["tasks"] == whole.records("evaluations.jsonl")[-1]["tasks"]
    assert audit(run.folder).sound
    assert audit(run.folder).trained == audit(whole.folder).trained == 30 * 18


@pytest.mark.slow
def test_a_broken_checkpoint_is_passed_over(start):
    command = {"run.steps": 4, "run.checkpoint_every": 2}
    first = start(**command)
    assert first.finish(), first.process.returncode
    older, newest = sorted((first.folder / "checkpoints").glob("step-*"))
    (broken, *_) = newest.glob("policy/*.pt")
    broken.write_bytes(broken.read_bytes()[:-100])
    second = start(**command | {"run.steps": 5})
    output = second.finish()
    assert second.process.returncode == 0, output
    assert f"resuming from {older}" in output
    assert str(newest) in output
