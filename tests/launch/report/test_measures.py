from pathlib import Path

import pytest
from recorded_runs import evaluation_record, step_record

from launch.report.measures import PLOTS, step_seconds
from launch.run_records import RunRecords
from shared.episodes import Task

BY_KEY = {plot.key: plot for plot in PLOTS}


def run_of(steps=(), evaluations=()) -> RunRecords:
    return RunRecords(Path("runs/mine"), list(steps), list(evaluations), [], None, {})


def curves(key: str, run: RunRecords) -> dict[str, list]:
    return {curve.label: curve.values for curve in BY_KEY[key].curves(run)}


def test_a_whole_record_fills_every_plot():
    run = run_of([step_record(1), step_record(2)], [evaluation_record(0)])
    assert [plot.key for plot in PLOTS if not plot.curves(run)] == []
    assert len(BY_KEY) == len(PLOTS)


def test_the_curves_of_the_earlier_figures_are_told_apart_by_task():
    steps = [step_record(1), step_record(2)]
    steps[1]["cells"] = {f"proposer/{task}": {"reward": i / 10} for i, task in enumerate(Task)}
    assert curves("proposer-reward", run_of(steps)) == {
        "deduction": [0.25, 0.0],
        "abduction": [0.25, 0.1],
        "induction": [0.25, 0.2],
    }
    evaluated = curves("accuracy", run_of([], [evaluation_record(0), evaluation_record(2)]))
    assert evaluated == {label: [0.25, 0.45] for label in [*Task, "mean of tasks"]}


def test_a_run_of_one_task_has_one_line():
    run = run_of([step_record(1, [Task.ABDUCTION])], [evaluation_record(0, [Task.ABDUCTION])])
    assert list(curves("valid-proposals", run)) == ["abduction"]
    assert list(curves("accuracy", run)) == ["abduction", "mean of tasks"]


def test_what_is_missing_leaves_a_gap_and_what_was_never_there_no_line():
    steps = [step_record(1), {"step": 2}, step_record(3)]
    steps[2]["tasks"]["deduction"] = {"valid": None}
    assert curves("valid-proposals", run_of(steps))["deduction"] == [0.75, None, None]
    assert curves("entropy", run_of([{"step": 1}, {"no": "step"}])) == {}
    assert all(plot.curves(run_of()) == [] for plot in PLOTS)


def test_runs_are_compared_by_the_mean_of_their_tasks():
    step = step_record(1)
    step["tasks"] = {"deduction": {"valid": 0.5}, "induction": {"valid": 1.0}}
    combined = BY_KEY["valid-proposals"].combined(run_of([step]))
    assert combined is not None
    assert (combined.label, combined.steps, combined.values) == ("mine", [1], [0.75])
    assert BY_KEY["staleness"].combined(run_of([step_record(1)])).values == [0.5]
    assert BY_KEY["accuracy"].combined(run_of([step_record(1)])) is None


def test_throughput_is_tokens_by_time():
    record = step_record(1) | {"untrained_tokens": 400}
    assert step_seconds(record) == 2.0
    assert curves("throughput", run_of([record])) == {
        "generated, whole step": [500.0],
        "learner's update alone": [10_000.0],
    }
    assert curves("throughput", run_of([record | {"phases": {}}])) == {}


def test_unparsable_responses_are_those_of_both_roles():
    record = step_record(1, [Task.DEDUCTION])
    record["cells"]["solver/deduction"] = {"episodes": 4, "verdicts": {"correct": 1.0}}
    assert curves("unparsable", run_of([record])) == {"proposer": [0.125], "solver": [0.0]}


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.key)
def test_every_plot_names_what_it_shows_and_its_unit(plot):
    assert plot.title
    assert plot.unit
    assert plot.says.endswith(".")
    assert set(plot.compared) <= set(plot.lines)
