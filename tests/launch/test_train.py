"""What whole runs do, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable

import pytest
from whole_runs import Run, loaded

from launch.processes import free_port
from shared.config_file import load_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def test_two_rollout_workers_at_learning_rate_zero_change_nothing(start, format_model):
    endpoint = f"tcp://127.0.0.1:{free_port()}"  # where others have a socket file
    run = start(**{"rollout.workers": 2, "learner.lr": 0, "stream.endpoint": endpoint})
    output = run.finish()
    assert run.process.returncode == 0, output
    steps = run.records("metrics.jsonl")
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5]
    assert all(s["staleness_max"] <= 1 for s in steps)
    assert all(s["episodes"] == 3 * (4 * 9 + 2 * 8) for s in steps)
    # The engines are the learner, synced or not: what they sampled is what it scores.
    assert all(s["learner"]["mismatch_max"] < 1e-3 for s in steps)
    assert all(s["sync"]["probe_difference"] < 1e-4 for s in steps)
    evaluations = run.records("evaluations.jsonl")
    assert [e["version"] for e in evaluations] == [0, 2, 4, 5]
    assert {e["accuracy"] for e in evaluations} == {evaluations[0]["accuracy"]}
    before, after = loaded(format_model), loaded(run.folder / "model")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_two_learner_ranks_train_and_the_run_is_recorded(start, format_model):
    run = start(**{"learner.ranks": 2, "learner.zero_stage": 3, "selfplay.max_staleness": 0, "run.seed": 3})
    output = run.finish()
    assert run.process.returncode == 0, output
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["steps"] == 5
    assert summary["weight_syncs"] == 6
    assert summary["seed"] == 3
    assert summary["episodes"] == 5 * 3 * (4 * 9 + 2 * 8)
    assert set(summary["per_task"]) == {"deduction", "abduction", "induction"}
    assert {"accuracy_before", "accuracy_after", "accuracy_best", "wall_s", "tokens_generated"} <= set(summary)
    steps = run.records("metrics.jsonl")
    assert all(s["staleness_max"] == 0 for s in steps)
    # On-policy: one step for each batch, sampled by the weights that it trains.
    assert {s["learner"]["ratio_mean"] for s in steps} == {1}
    assert all([*s["learner"]["mismatch_by_staleness"]] == ["0"] for s in steps)
    assert all(s["learner"]["mismatch_max"] < 1e-4 for s in steps)
    assert all(0 < s["sync"]["probe_difference"] < 1e-4 for s in steps)
    assert sum(s["response_tokens"] for s in steps) == summary["tokens_generated"]
    assert load_config(run.folder / "config.toml").learner.ranks == 2
    assert list(run.temporary.glob("torchinductor*")) == []  # on the CPU nothing is compiled
    before, after = loaded(format_model), loaded(run.folder / "model")
    assert any(not before[name].equal(after[name]) for name in before)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = AutoModelForCausalLM.from_pretrained(run.folder / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model", local_files_only=True)
    assert exported.config.vocab_size == len(tokenizer)


def test_interrupted_once_it_finishes_the_step_and_leaves_a_complete_run(start):
    run = start(**{"run.steps": 10_000})
    run.wait_for(r"step +2/")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    assert "stopping after this step" in output
    summary = json.loads((run.folder / "summary.json").read_text())
    assert 2 <= summary["steps"] < 1000
    assert (run.folder / "model" / "model.safetensors").is_file()


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


@pytest.mark.parametrize("tell", [os.kill, os.killpg], ids=["the launcher", "all"])
def test_told_to_end_it_leaves_at_once(start, tell):
    run = start(**{"run.steps": 10_000})
    run.wait_for(r"step +2/")
    tell(run.process.pid, signal.SIGTERM)
    output = run.finish()
    assert "is started again" not in output
    assert run.process.returncode == 143, output
    assert "every process of the run has been ended; given again" in output
    assert "Traceback" not in output


def kill_engine(run: Run) -> None:
    run.process_named("EngineCore").kill()


def kill_worker(run: Run) -> None:
    run.process_named("RolloutProcess").kill()


@pytest.mark.parametrize(("kill", "named"), [(kill_engine, "engine"), (kill_worker, "rollout-0")])
def test_a_process_that_may_not_be_started_again_ends_the_run_with_an_error_that_names_it(
    start, kill: Callable[[Run], None], named: str
):
    run = start(**{"run.steps": 10_000, "run.max_restarts": 0})
    run.wait_for(r"step +2/")
    kill(run)
    output = run.finish()
    assert run.process.returncode == 1, output
    assert re.search(rf"primezero: .*{named}", output), output
    assert "Traceback" not in output
