import json
from dataclasses import fields

import pytest
from experiment_runs import FakePrimezero

from launch.experiments.data import DataError, condense, read_data
from launch.experiments.plan import FULL, PlannedRun, planned_runs
from launch.model_recipe import CONFIG
from learner.batch_metrics import BatchMetrics, CellMetrics, TaskMetrics
from learner.train_metrics import TrainMetrics
from shared.episodes import Task


def test_what_is_read_is_what_batches_record():
    assert {"accuracy", "valid", "distinct"} <= {field.name for field in fields(TaskMetrics)}
    assert {"entropy", "mismatch_mean"} <= {field.name for field in fields(TrainMetrics)}
    assert "reward" in {field.name for field in fields(CellMetrics)}
    assert {"tasks", "cells", "staleness_mean"} <= {field.name for field in fields(BatchMetrics)}


def test_a_run_folder_is_condensed_into_what_the_report_needs(session, tmp_path):
    session(FakePrimezero(), only=["full"], seeds=[0])
    data = read_data(tmp_path / "data/full-0.json", PlannedRun(FULL, 0))
    assert (data.variant, data.seed, data.steps, data.episodes, data.wall_s) == ("full", 0, 120, 11880, 12.3)
    assert data.command.startswith(f"primezero train --config {CONFIG} --model.path=")
    assert len(data.model_sha256) == 64
    assert [point.step for point in data.evaluations] == list(range(0, 121, 10))
    assert data.evaluations[0].accuracy == {"deduction": 0.4, "abduction": 0.4, "induction": 0.4}
    health = data.health
    assert health.step == list(range(10, 121, 10))
    assert health.entropy[:2] == pytest.approx([0.55, 1.55])
    assert health.mismatch[0] == 1.25e-7
    assert health.staleness == [0.5] * 12
    assert health.valid == {task: [0.5] * 12 for task in Task}
    assert health.distinct["induction"] == [20] * 12
    assert health.proposer_reward["abduction"] == [0.25] * 12
    assert health.solver_accuracy["deduction"][1] == pytest.approx(0.0155)
    assert (tmp_path / "data/full-0.json").stat().st_size < 20_000


def test_without_proposals_there_is_nothing_where_they_would_be_measured(session, tmp_path):
    session(FakePrimezero(), only=["uniform"], seeds=[0])
    (run,) = planned_runs(["uniform"], [0])
    health = read_data(tmp_path / "data/uniform-0.json", run).health
    assert health.valid["deduction"] == health.proposer_reward["deduction"] == [None] * 12


def test_values_that_were_not_finite_are_left_out_of_their_mean(session, tmp_path):
    session(FakePrimezero(), only=["full"], seeds=[0])
    folder, run = tmp_path / "out/full-0", PlannedRun(FULL, 0)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records[0]["learner"]["entropy"] = None
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert condense(folder, run).health.entropy[0] == pytest.approx(0.6)


def test_records_of_half_a_run_or_none_are_refused(session, tmp_path):
    session(FakePrimezero(), only=["full"], seeds=[0])
    folder, run = tmp_path / "out/full-0", PlannedRun(FULL, 0)
    evaluations = (folder / "evaluations.jsonl").read_text().splitlines()
    (folder / "evaluations.jsonl").write_text("\n".join(evaluations[:-1]))
    with pytest.raises(DataError, match="not of the planned run full-0"):
        condense(folder, run)
    (folder / "metrics.jsonl").write_text("{}")
    with pytest.raises(DataError, match="not those of a finished run"):
        condense(folder, run)
