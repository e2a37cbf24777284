"""Whole runs in the placements for several GPUs, on the CPU."""

from __future__ import annotations

import json

import pytest
from placed_runs import CONFIGS, TINY
from whole_runs import check_records, loaded

from shared.config_file import load_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def test_second_gpu_s_configuration_trains_on_the_cpu_and_outlives_a_rank_that_dies_before_the_first_checkpoint(
    start, format_model
):
    """Two workers and two ranks, on-policy; what the run records of it."""
    on_policy = {"selfplay.max_staleness": 0, "learner.zero_stage": 3, "run.seed": 3, "run.steps": 5}
    run = start(config=CONFIGS / "second_gpu.toml", **TINY | on_policy)
    run.wait_for(r"step +1/")
    run.process_named("LearnerProcess", "/learner-1").kill()
    line = run.wait_for("is started again")
    assert line.startswith("the process of learner-1 died; learner is started again from the beginning, lineage 1 ")
    output = run.finish()
    assert run.process.returncode == 0, output
    assert "Traceback" not in output
    check_records(run)
    used = load_config(run.folder / "config.toml")
    assert (used.placement.kind, used.placement.device, used.sync.transport) == ("split", "cpu", "shm")
    assert (used.learner.ranks, used.rollout.workers) == (2, 2)
    logs = {path.stem for path in (run.folder / "logs").iterdir()}
    assert {"rollout-0", "rollout-1", "learner-0", "learner-1"} <= logs

    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["steps"] == 5
    assert summary["weight_syncs"] == 6
    assert summary["seed"] == 3
    assert summary["episodes"] == 5 * 3 * (4 * 9 + 2 * 8)
    assert set(summary["per_task"]) == {"deduction", "abduction", "induction"}
    assert {"accuracy_before", "accuracy_after", "accuracy_best", "wall_s", "tokens_generated"} <= set(summary)
    steps = run.records("metrics.jsonl")
    assert all(s["staleness_max"] == 0 for s in steps)
    assert all(s["learner"]["gradient_norm"] > 0 for s in steps)
    # On-policy: one step for each batch, sampled by the weights that it trains.
    assert {s["learner"]["ratio_mean"] for s in steps} == {1}
    assert all([*s["learner"]["mismatch_by_staleness"]] == ["0"] for s in steps)
    assert all(s["learner"]["mismatch_max"] < 1e-4 for s in steps)
    assert all(0 < s["sync"]["probe_difference"] < 1e-4 for s in steps)
    assert sum(s["response_tokens"] for s in steps) == summary["tokens_generated"]
    assert list(run.temporary.rglob("torchinductor*")) == []  # on the CPU nothing is compiled
    before, after = loaded(format_model), loaded(run.folder / "model")
    assert any(not before[name].equal(after[name]) for name in before)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = AutoModelForCausalLM.from_pretrained(run.folder / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model", local_files_only=True)
    assert exported.config.vocab_size == len(tokenizer)
