"""What the records say of problems that are never trained on, and how a resumed run goes on with them.

The rest of them is in test_records.py.
"""

import json

import pytest

from learner.progress import Progress, Summary
from shared.config_file import load_config
from shared.episodes import Evaluation, Task, TaskAccuracy

COUNTS = {"episodes": 10, "response_tokens": 1, "untrained_episodes": 0, "untrained_tokens": 0, "sync": {}}


def evaluation(version: int, held_out: dict[Task, float]) -> Evaluation:
    def results(accuracies: dict[Task, float]) -> dict[Task, TaskAccuracy]:
        return {task: TaskAccuracy(10, accuracy, 0.0, 4.0) for task, accuracy in accuracies.items()}

    return Evaluation(version, results({Task.DEDUCTION: 0.9, Task.ABDUCTION: 0.9}), results(held_out))


@pytest.fixture
def summarise(tmp_path):
    def run(*evaluations: Evaluation) -> tuple[Summary, list[dict]]:
        config = load_config(None, ["--run.steps=4", "--run.evaluate_every=2", "--run.final_evaluations=2"])
        progress = Progress(config, tmp_path)
        for each in evaluations:
            progress.evaluated(each)
        summary = progress.summarise(4)
        progress.close()
        lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
        return summary, [json.loads(line) for line in lines]

    return run


def test_held_out_accuracy_is_recorded_and_averaged_like_the_other(summarise, tmp_path):
    summary, records = summarise(
        evaluation(0, {Task.DEDUCTION: 0.1, Task.ABDUCTION: 0.3}),
        evaluation(2, {Task.DEDUCTION: 0.4, Task.ABDUCTION: 0.6}),
        evaluation(4, {Task.DEDUCTION: 0.6, Task.ABDUCTION: 0.8}),
    )
    assert summary.held_out_before == pytest.approx(0.2)
    assert summary.held_out_after == pytest.approx((0.5 + 0.7) / 2)
    assert summary.accuracy_after == pytest.approx(0.9)
    assert [r["held_out_accuracy"] for r in records] == pytest.approx([0.2, 0.5, 0.7])
    assert records[1]["held_out"]["abduction"]["accuracy"] == 0.6
    assert json.loads((tmp_path / "summary.json").read_text())["held_out_after"] == summary.held_out_after


def test_where_nothing_is_held_out_there_is_no_number(summarise):
    summary, records = summarise(evaluation(0, {}), evaluation(2, {}), evaluation(4, {}))
    assert summary.held_out_before is None
    assert summary.held_out_after is None
    assert [r["held_out_accuracy"] for r in records] == [None, None, None]
    assert summary.accuracy_after == pytest.approx(0.9)


def test_a_resumed_run_goes_on_with_what_is_on_record_up_to_its_version(tmp_path):
    config = load_config(None, ["--run.steps=7", "--run.evaluate_every=2"])
    progress = Progress(config, tmp_path)
    for version in range(7):
        if version:
            progress.record(progress.step(version, COUNTS | {"response_tokens": 100 * version}))
        if version % 2 == 0:
            progress.evaluated(evaluation(version, {}))
    progress.close()
    before = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    with (tmp_path / "evaluations.jsonl").open("a") as damaged:
        damaged.write('{"other": 1}\n')

    resumed = Progress(config, tmp_path, resumed_at=3)
    assert not resumed.needs_evaluation(2, final=False)
    assert not resumed.needs_evaluation(2, final=True)  # it has been evaluated
    assert not resumed.needs_evaluation(3, final=False)
    assert resumed.needs_evaluation(3, final=True)
    assert resumed.needs_evaluation(4, final=False)
    resumed.record(resumed.step(4, COUNTS | {"untrained_episodes": 3, "untrained_tokens": 50}))
    resumed.evaluated(evaluation(4, {}))
    summary = resumed.summarise(4)
    resumed.close()
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps] == [1, 2, 3, 4]
    assert steps[3]["wall_s"] >= before[2]["wall_s"]
    evaluations = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [e["version"] for e in evaluations] == [0, 2, 4]
    assert (summary.episodes, summary.tokens_generated, summary.weight_syncs) == (43, 651, 4)
    assert summary.accuracy_before == pytest.approx(0.9)
