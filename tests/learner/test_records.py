"""What a batch says about itself, and what a run comes to."""

import json
from dataclasses import asdict, replace

import pytest
from factories import make_episode

from learner.batch_metrics import batch_metrics
from learner.collector import Batch
from learner.progress import Progress
from shared.config import load_config
from shared.episodes import ClosedTicket, Evaluation, Problem, Role, Task, TaskAccuracy, TicketId, Verdict, VersionSpan


def test_batch_metrics_name_cells_and_shares():
    problem = Problem(Task.DEDUCTION, "c", "k")
    right = make_episode(version=3)
    wrong = replace(make_episode(version=3), verdict=Verdict.WRONG, reward=-0.5)
    mixed = replace(wrong, spans=(VersionSpan(2, 0, 1), VersionSpan(3, 1, 2, mixed_kv=True)))
    proposal = make_episode(Role.PROPOSER, version=3, verdict=Verdict.VALID, reward=0.25, response=[1, 2, 3, 4])
    repeat = replace(proposal, verdict=Verdict.REPEAT, reward=-0.5)
    batch = Batch(
        3,
        (
            ClosedTicket(TicketId(0, 3, 0), proposal, problem, problem, (right, right)),
            ClosedTicket(TicketId(0, 3, 1), repeat, problem, problem, (right, wrong)),
            ClosedTicket(TicketId(0, 3, 2), None, None, problem, (wrong, mixed)),
        ),
    )
    metrics = batch_metrics(batch)
    assert metrics.episodes == 8
    assert metrics.response_tokens == 2 * 6 + 4 * 2
    assert metrics.prompt_tokens == 3 * 8
    solver, proposer = metrics.cells["solver/deduction"], metrics.cells["proposer/deduction"]
    assert (solver.episodes, solver.reward, solver.verdicts) == (6, 0.25, {"correct": 0.5, "wrong": 0.5})
    assert (proposer.reward, proposer.response_tokens) == (-0.125, 4)
    task = metrics.tasks[Task.DEDUCTION]
    assert (task.accuracy, task.valid, task.distinct) == (0.5, 0.5, 1)
    assert task.solve_rate_spread == pytest.approx((1 / 6) ** 0.5)
    assert (metrics.staleness_max, metrics.staleness_mean, metrics.mixed_kv) == (1, 1 / 20, 1 / 20)


def evaluation(version: int, *accuracies: float) -> Evaluation:
    results = (TaskAccuracy(10, accuracy, 0.0, 4.0) for accuracy in accuracies)
    return Evaluation(version, dict(zip(Task, results, strict=True)))


def test_summary_averages_consecutive_evaluations(tmp_path):
    config = load_config(None, ["--run.steps=6", "--run.evaluate_every=2", "--run.final_evaluations=2", "--run.seed=5"])
    progress = Progress(config, tmp_path)
    for version, accuracy in ((0, 0.3), (2, 0.9), (4, 0.7), (6, 0.5)):
        progress.evaluated(evaluation(version, accuracy, accuracy - 0.3, accuracy))
    progress.synced()
    summary = progress.summarise(6)
    progress.close()
    assert summary.accuracy_before == pytest.approx(0.2)
    assert summary.accuracy_after == pytest.approx((0.6 + 0.4) / 2)
    assert summary.accuracy_best == pytest.approx((0.8 + 0.6) / 2)
    assert summary.per_task["abduction"] == pytest.approx({"before": 0.0, "after": 0.3})
    assert (summary.steps, summary.weight_syncs, summary.seed) == (6, 1, 5)
    assert json.loads((tmp_path / "summary.json").read_text()) == asdict(summary)
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines] == [0, 2, 4, 6]
    assert lines[1]["tasks"]["induction"]["accuracy"] == 0.9


def test_the_untrained_models_evaluation_is_never_part_of_the_result(tmp_path):
    config = load_config(None, ["--run.steps=6", "--run.evaluate_every=2", "--run.final_evaluations=3"])
    progress = Progress(config, tmp_path)
    for version, accuracy in ((0, 0.0), (2, 0.6)):  # stopped early
        progress.evaluated(evaluation(version, accuracy, accuracy, accuracy))
    summary = progress.summarise(2)
    progress.close()
    assert summary.accuracy_after == summary.accuracy_best == pytest.approx(0.6)


def test_a_step_is_one_line_with_its_phases_and_no_invalid_numbers(tmp_path):
    progress = Progress(load_config(None), tmp_path)
    progress.lap("wait_s")
    progress.lap("train_s")
    progress.step(1, {"episodes": 3, "response_tokens": 7, "odd": float("nan")})
    progress.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["step"], record["odd"]) == (1, None)
    assert set(record["phases"]) == {"wait_s", "train_s"}


def test_the_time_limit_counts_from_the_start_of_training(tmp_path):
    limited = Progress(load_config(None, ["--run.time_limit_s", "1e-9"]), tmp_path)
    limited.start_clock()
    assert limited.out_of_time()
    unlimited = Progress(load_config(None), tmp_path)
    assert not unlimited.out_of_time()
