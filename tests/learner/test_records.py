"""What a batch says about itself, and what a run comes to."""

import json
from dataclasses import asdict

import pytest
from factories import make_closed, make_episode, make_problem, make_ticket
from msgspec.structs import replace

from learner.batch_metrics import batch_metrics
from learner.collector import Batch
from learner.progress import Progress
from shared.config_file import load_config
from shared.episodes import ClosedTicket, Evaluation, Problem, Role, Task, TaskAccuracy, Verdict, VersionSpan

KNOWN = make_problem("known", family="f")


def closed_tickets(*parts: tuple[Verdict | None, Problem | None, float]) -> Batch:
    """A batch with a ticket for each (verdict, proposed problem, solve rate); verdict None for a buffer ticket."""
    issued, closed = [], []
    for index, (verdict, proposed, rate) in enumerate(parts):
        kind = "buffer" if verdict is None else "proposal"
        ticket = make_ticket(kind, index=index, references=() if verdict is None else (KNOWN,))
        made = make_closed(ticket, attempts=4, proposed=proposed, correct=round(4 * rate))
        if made.proposal is not None:
            made = replace(made, proposal=replace(made.proposal, verdict=verdict))
        issued.append(ticket)
        closed.append(made)
    return Batch(0, tuple(closed), tuple(issued))


def test_batch_metrics_name_cells_and_shares():
    problem = make_problem("k")
    right = make_episode(version=3)
    wrong = replace(make_episode(version=3), verdict=Verdict.WRONG, reward=-0.5)
    mixed = replace(wrong, spans=(VersionSpan(2, 0, 1), VersionSpan(3, 1, 2, mixed_kv=True)))
    proposal = make_episode(Role.PROPOSER, version=3, verdict=Verdict.VALID, reward=0.25, response=[1, 2, 3, 4])
    repeat = replace(proposal, verdict=Verdict.REPEAT, reward=-0.5)
    issued = tuple(make_ticket(kind, batch=3, index=i) for i, kind in enumerate(("proposal", "proposal", "buffer")))
    batch = Batch(
        3,
        (
            ClosedTicket(issued[0].id, proposal, problem, problem, (right, right), 1.0),
            ClosedTicket(issued[1].id, repeat, problem, problem, (right, wrong), 0.5),
            ClosedTicket(issued[2].id, None, None, problem, (wrong, mixed), 0.0),
        ),
        issued,
    )
    metrics = batch_metrics(batch, attempts=2)
    assert metrics.episodes == 8
    assert metrics.response_tokens == 2 * 6 + 4 * 2
    assert metrics.prompt_tokens == 3 * 8
    solver, proposer = metrics.cells["solver/deduction"], metrics.cells["proposer/deduction"]
    assert (solver.episodes, solver.reward, solver.verdicts) == (6, 0.25, {"correct": 0.5, "wrong": 0.5})
    assert (proposer.reward, proposer.response_tokens) == (-0.125, 4)
    task = metrics.tasks[Task.DEDUCTION]
    assert (task.accuracy, task.valid, task.distinct, task.repeats) == (0.5, 0.5, 1, 0.5)
    assert task.solve_rate_spread == pytest.approx((1 / 6) ** 0.5)
    assert (metrics.staleness_max, metrics.staleness_mean, metrics.mixed_kv) == (1, 1 / 20, 1 / 20)


def test_the_proposers_health_is_measured_on_its_valid_proposals():
    batch = closed_tickets(
        (Verdict.VALID, make_problem("a", family="f"), 0.25),
        (Verdict.VALID, make_problem("b", family="g"), 0.75),
        (Verdict.VALID, make_problem("c", family="g"), 0.0),
        (Verdict.VALID, make_problem("d", family="f"), 0.0),
        (Verdict.REPEAT, make_problem("d", family="f"), 1.0),
        (Verdict.HELD_OUT, None, 1.0),
        (Verdict.INVALID, None, 1.0),
        (Verdict.HELD_OUT, None, 1.0),
        (None, None, 1.0),
    )
    task = batch_metrics(batch, attempts=4).tasks[Task.DEDUCTION]
    assert (task.valid, task.held_out, task.repeats, task.distinct) == (4 / 8, 2 / 8, 1 / 8, 4)
    assert (task.variants, task.proposed_solve_rate, task.proposed_reward) == (2 / 4, 0.25, 0.5)
    assert task.expected_learnability == 0.75 - 0.75**4
    assert task.accuracy == pytest.approx(6 / 9)


def test_what_there_is_none_of_has_no_share():
    invalid = batch_metrics(closed_tickets((Verdict.INVALID, None, 1.0)), attempts=4).tasks[Task.DEDUCTION]
    assert (invalid.valid, invalid.held_out, invalid.repeats) == (0.0, 0.0, 0.0)
    nothing = batch_metrics(closed_tickets((None, None, 1.0)), attempts=4).tasks[Task.DEDUCTION]
    assert (nothing.valid, nothing.held_out, nothing.repeats, nothing.distinct) == (None, None, None, 0)
    for task in (invalid, nothing):
        assert (task.variants, task.proposed_solve_rate, task.proposed_reward) == (None, None, None)
        assert task.expected_learnability is None


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
    counts = {"episodes": 3, "response_tokens": 7, "untrained_episodes": 0, "untrained_tokens": 0}
    progress = Progress(load_config(None), tmp_path)
    progress.lap("wait_s")
    progress.lap("train_s")
    progress.record(progress.step(1, counts | {"odd": float("nan")}))
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
