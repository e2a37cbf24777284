"""Runs that died and go on from their last checkpoint."""

from __future__ import annotations

import contextlib
import json

import psutil
import pytest
from whole_runs import loaded

from learner.audit import audit

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def test_a_run_whose_learner_was_killed_goes_on_from_its_last_checkpoint_by_the_same_command(start):
    command = {"run.steps": 60, "run.checkpoint_every": 2, "run.max_restarts": 0, "learner.ranks": 2}
    first = start(**command)
    first.wait_for(r"step +5/")
    learners = first.find("LearnerProcess")
    assert len(learners) == 2
    for process in learners:
        with contextlib.suppress(psutil.NoSuchProcess):  # of the other's death, by now
            process.kill()
    first.finish()
    assert first.process.returncode == 1
    saved = sorted((first.folder / "checkpoints").glob("step-*"))[-1]
    version = int(saved.name.removeprefix("step-"))
    assert version >= 4

    second = start(**command | {"run.steps": version + 3})
    output = second.finish()
    assert second.process.returncode == 0, output
    assert f"resuming from {saved}" in output
    steps = second.records("metrics.jsonl")
    assert [s["step"] for s in steps] == list(range(1, version + 4))
    walls = [s["wall_s"] for s in steps]
    assert walls == sorted(walls)
    evaluations = [e["version"] for e in second.records("evaluations.jsonl")]
    assert evaluations == sorted({*range(0, version + 3, 2), version + 3})
    # The engine's weights are the restored learner's, and the entropy bonus knows the batch before.
    assert all(s["sync"]["probe_difference"] < 1e-4 for s in steps)
    assert all(s["learner"]["mismatch_max"] < 1e-3 for s in steps if s["staleness_max"] == 0)
    summary = json.loads((second.folder / "summary.json").read_text())
    assert summary["steps"] == version + 3
    assert summary["episodes"] == sum(s["episodes"] for s in steps)
    assert loaded(second.folder / "model")

    third = start(**command | {"run.steps": version + 3})
    output = third.finish()
    assert third.process.returncode == 1
    assert "raise --run.steps to go on" in output


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
