"""Whole runs in the placements for several GPUs, on the CPU."""

from __future__ import annotations

import json

import pytest
from placed_runs import CONFIGS, TINY
from whole_runs import check_records

from shared.config_file import load_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def test_second_gpu_s_configuration_runs_on_the_cpu_with_two_workers_and_two_ranks(start):
    run = start(config=CONFIGS / "second_gpu.toml", **TINY)
    output = run.finish()
    assert run.process.returncode == 0, output
    check_records(run)
    used = load_config(run.folder / "config.toml")
    assert (used.placement.kind, used.placement.device, used.sync.transport) == ("split", "cpu", "shm")
    assert json.loads((run.folder / "summary.json").read_text())["steps"] == 3
    steps = run.records("metrics.jsonl")
    assert all(s["staleness_max"] <= 1 for s in steps)
    assert all(s["learner"]["gradient_norm"] > 0 for s in steps)
    logs = {path.stem for path in (run.folder / "logs").iterdir()}
    assert {"rollout-0", "rollout-1", "learner-0", "learner-1"} <= logs
    assert "Traceback" not in output
