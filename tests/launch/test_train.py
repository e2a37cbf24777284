"""What whole runs do, and how they end."""

from __future__ import annotations

import os
import signal
import time

import pytest
from whole_runs import loaded

from launch.processes import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def test_two_rollout_workers_at_learning_rate_zero_change_nothing(start, format_model):
    endpoint = f"tcp://127.0.0.1:{free_port()}"  # where others have a socket file
    run = start(**{"run.steps": 3, "rollout.workers": 2, "learner.lr": 0, "stream.endpoint": endpoint})
    output = run.finish()
    assert run.process.returncode == 0, output
    steps = run.records("metrics.jsonl")
    assert [s["step"] for s in steps] == [1, 2, 3]
    assert all(s["staleness_max"] <= 1 for s in steps)
    assert all(s["episodes"] == 3 * (4 * 9 + 2 * 8) for s in steps)
    # The engines are the learner, synced or not: what they sampled is what it scores.
    assert all(s["learner"]["mismatch_max"] < 1e-3 for s in steps)
    assert all(s["sync"]["probe_difference"] < 1e-4 for s in steps)
    evaluations = run.records("evaluations.jsonl")
    assert [e["version"] for e in evaluations] == [0, 2, 3]
    assert {e["accuracy"] for e in evaluations} == {evaluations[0]["accuracy"]}
    before, after = loaded(format_model), loaded(run.folder / "model")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("moment", [r"starting", r"step +2/"])
def test_interrupted_twice_it_leaves_at_once(start, moment):
    run = start(**{"run.steps": 10_000})
    run.wait_for(moment)
    time.sleep(3)
    for learner in run.find("LearnerProcess"):
        learner.suspend()  # it might be done before the second time
    run.press_ctrl_c()
    run.wait_for("stopping after this step")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 130, output
    assert "every process of the run has been ended; given again" in output


@pytest.mark.parametrize(
    ("tell", "moment"),
    [(os.kill, r"step +2/"), (os.killpg, "starting")],
    ids=["the launcher, at work", "all processes, while they start"],
)
def test_told_to_end_it_leaves_at_once(start, tell, moment):
    run = start(**{"run.steps": 10_000})
    run.wait_for(moment)
    run.wait_for_processes("LearnerProcess", "RolloutProcess")
    tell(run.process.pid, signal.SIGTERM)
    output = run.finish()
    assert "is started again" not in output
    assert run.process.returncode == 143, output
    assert "every process of the run has been ended; given again" in output
    assert "Traceback" not in output
