"""Runs whose processes are killed, and go on by themselves."""

from __future__ import annotations

import json
import time

import pytest
from whole_runs import Run, check_records, loaded

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]


def wait_until_it_goes_on(run: Run) -> None:
    """At staleness 0 a learner without workers can finish the step that it is in, but not the one after."""
    for _ in range(2):
        run.wait_for(r"^step +\d+/")


def test_a_run_outlives_its_worker_its_engine_and_its_learner(start):
    run = start(**{"run.steps": 10_000, "run.time_limit_s": "none", "run.checkpoint_every": 2})
    run.wait_for(r"step +3/")
    run.process_named("RolloutWorker").kill()
    line = run.wait_for("is started again")
    assert line.startswith("the process of rollout-0 died (SIGKILL); rollout-0 is started again (1 of at most 5")
    wait_until_it_goes_on(run)
    run.process_named("EngineCore").kill()
    line = run.wait_for("is started again")
    assert line.startswith("rollout-0 failed: ")
    assert "engine" in line
    assert "rollout-0 is started again, in 1 s (2 of at most 5" in line
    wait_until_it_goes_on(run)

    learner = run.process_named("LearnerProcess")
    learner.suspend()
    time.sleep(10)
    learner.resume()
    wait_until_it_goes_on(run)
    learner.kill()
    line = run.wait_for("is started again")
    assert line.startswith("the process of learner-0 died; learner is started again from step ")
    wait_until_it_goes_on(run)
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    assert "stopping after this step" in output
    summary = json.loads((run.folder / "summary.json").read_text())
    assert 2 <= summary["steps"] < 1000

    check_records(run)
    restarts = run.records("restarts.jsonl")
    assert [r["process"] for r in restarts] == ["rollout-0", "rollout-0", "learner"]
    assert [r["lineage"] for r in restarts] == [0, 0, 1]
    assert [r["version"] is None for r in restarts] == [True, True, False]
    assert restarts[2]["version"] % 2 == 0
    assert f"from step {restarts[2]['version']}, lineage 1 " in line
    assert loaded(run.folder / "model")


@pytest.mark.slow
def test_a_learner_that_dies_before_its_first_checkpoint_begins_anew_also_when_the_run_is_to_stop(start):
    run = start(**{"run.steps": 10_000, "run.time_limit_s": "none", "run.checkpoint_every": 0, "learner.ranks": 2})
    run.wait_for(r"step +3/")
    run.process_named("LearnerProcess", "/learner-1").kill()
    line = run.wait_for("is started again")
    assert line.startswith("the process of learner-1 died; learner is started again from the beginning, lineage 1 ")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    assert run.records("metrics.jsonl") == []
    assert [e["version"] for e in run.records("evaluations.jsonl")] == [0]
    assert json.loads((run.folder / "summary.json").read_text())["steps"] == 0
    assert loaded(run.folder / "model")
