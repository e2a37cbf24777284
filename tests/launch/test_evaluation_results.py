import pytest
from evaluation_samples import SlicedEnvironment, compared

from launch.evaluation_report import ProblemSet
from launch.evaluation_results import Compared, problem_set
from shared.episodes import Task
from shared.statistics import mean_interval, paired_difference_interval, wilson_interval


def reported(*problems: list[Compared]) -> ProblemSet:
    result = problem_set(SlicedEnvironment(), [each for part in problems for each in part])
    assert result is not None
    return result


def test_a_row_counts_the_greedy_attempts():
    row = reported(compared(Task.DEDUCTION, ("++-?+", ()))).all.tasks["deduction"]
    assert row.problems == 5
    assert row.baselines == {"constant": 0.2}
    assert row.model.accuracy.value == 0.6
    assert (row.model.accuracy.low, row.model.accuracy.high) == wilson_interval(3, 5)
    assert (row.model.unparsable, row.model.truncated, row.model.response_tokens) == (0.2, 0.2, 4)
    assert (row.model.pass_at, row.baseline_model, row.difference) == ({}, None, None)


def test_the_mean_weighs_tasks_alike_however_many_problems_they_have():
    group = reported(compared(Task.DEDUCTION, ("+---", ())), compared(Task.INDUCTION, ("++", ()))).all
    assert list(group.tasks) == ["deduction", "induction"]
    assert (group.mean.problems, group.mean.model.accuracy.value) == (6, (0.25 + 1) / 2)
    tasks = [row.model.accuracy for row in group.tasks.values()]
    expected = mean_interval([(a.value, a.low, a.high) for a in tasks])
    assert (group.mean.model.accuracy.low, group.mean.model.accuracy.high) == expected
    # Induction alone knows the trick with the next prime.
    assert group.mean.baselines == {"constant": (1 / 4 + 1 / 2) / 2}


def test_pass_at_k_takes_powers_of_two_and_the_number_of_samples():
    row = reported(compared(Task.DEDUCTION, ("+-", ["++-+-?", "-?----"]))).all.tasks["deduction"]
    assert list(row.model.pass_at) == [1, 2, 4, 6]
    # 3 of 6 right: pass@1 = 3/6; pass@2 = 1 - C(3, 2) / C(6, 2); the other problem is never solved.
    assert list(row.model.pass_at.values()) == pytest.approx([0.25, (1 - 3 / 15) / 2, 0.5, 0.5])


def test_models_are_compared_problem_by_problem():
    group = reported(compared(Task.DEDUCTION, ("+++-+", ()), ("+--+-", ()))).all
    row = group.tasks["deduction"]
    assert row.baseline_model is not None
    assert row.baseline_model.accuracy.value == 0.4
    assert row.difference is not None
    assert row.difference.value == pytest.approx(0.8 - 0.4)
    assert (row.difference.low, row.difference.high) == paired_difference_interval(3, 1, 5)
    assert group.mean.difference == row.difference


def test_slices_are_reported_apart_and_stay_in_the_whole():
    result = reported(compared(Task.DEDUCTION, ("+--", ())), compared(Task.INDUCTION, ("-++", ())))
    assert result.all.mean.problems == 6
    assert set(result.slices) == {"easy"}
    easy = result.slices["easy"]
    assert {task: row.model.accuracy.value for task, row in easy.tasks.items()} == {"deduction": 1, "induction": 0}
    assert easy.tasks["deduction"].baselines == {"constant": 1.0}


def test_of_no_problems_there_is_no_report():
    assert problem_set(SlicedEnvironment(), []) is None
