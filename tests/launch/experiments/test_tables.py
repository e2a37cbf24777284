import pytest
from experiment_runs import curve, fabricated

from launch.experiments import tables
from launch.experiments.data import DataError
from launch.experiments.plan import FULL, PlannedRun, planned_runs
from launch.experiments.report import data_folder
from launch.experiments.results import final_accuracy, load_results, long_windows, mean_accuracy


def row(table, name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_final_is_the_mean_of_the_last_three_and_mean_that_of_all():
    data = fabricated(PlannedRun(FULL, 0), curve(0.8))
    assert final_accuracy(data) == pytest.approx(0.8)
    assert mean_accuracy(data) == pytest.approx((10 * 0.3 + 3 * 0.8) / 13)


def test_the_comparison_table_agrees_with_a_computation_by_hand(docs):
    table = tables.all_tables(load_results(data_folder(docs)))["switches"]
    assert row(table, "full")[1:3] == ["3 of 3", "0.750 (0.700–0.800)"]
    # Pairs: 0.04 and 0.02. Mean 0.03, s = 0.0141421, s/√2 = 0.01, t = 12.7062.
    ema = row(table, "ema")
    assert ema[1:3] == ["2 of 2", "0.780 (0.720–0.840)"]
    assert ema[4] == "+0.030 ± 0.127 (2 pairs)"
    # The mean of 13 evaluations, three of which differ: 3/13 of that.
    assert ema[5] == "+0.007 ± 0.029 (2 pairs)"


def test_pairs_are_of_the_same_seed_and_a_single_one_has_no_interval(docs):
    assert row(tables.all_tables(load_results(data_folder(docs)))["switches"], "paper") == [
        "paper",
        "1 of 2",
        "0.500 (0.500–0.500)",
        "0.346 (0.346–0.346)",
        "-0.200 (one pair)",
        "-0.046 (one pair)",
    ]


def test_what_was_not_run_is_shown_as_missing(docs):
    made = tables.all_tables(load_results(data_folder(docs)))
    assert row(made["proposer"], "uniform") == ["uniform", "0 of 3", *["missing"] * 4]
    assert row(made["long"], "long-1") == ["long-1", *["missing"] * 5]
    assert set(row(made["runs"], "separate-0")[1:]) == {"missing"}
    assert len(made["runs"].splitlines()) == 2 + len(planned_runs())


def test_the_long_table_sets_the_best_five_against_the_last_five(docs):
    made = tables.all_tables(load_results(data_folder(docs)))
    assert row(made["long"], "long-0") == ["long-0", "0.900", "200–240", "0.800", "-0.100", "no"]


def test_a_drop_of_up_to_the_tolerance_is_kept():
    (run,) = planned_runs(["long"], [0])
    assert long_windows(fabricated(run, [0.9] * 56 + [0.851] * 5)).kept
    assert not long_windows(fabricated(run, [0.9] * 56 + [0.849] * 5)).kept


def test_the_untrained_model_is_in_no_window():
    (run,) = planned_runs(["long"], [0])
    assert long_windows(fabricated(run, [1.0] + [0.5] * 60)).best == pytest.approx(0.5)


def test_the_run_table_has_each_tasks_final_accuracy(docs):
    made = tables.all_tables(load_results(data_folder(docs)))
    assert row(made["runs"], "full-0") == [
        "full-0",
        "0123456789",
        "100",
        "1000",
        "0.25",
        "0.300",
        "0.800",
        "0.700",
        "0.800",
        "0.900",
    ]


def test_the_plan_table_counts_trained_rows():
    table = tables.plan_table()
    assert f"| full | 0, 1, 2 | 120 | {3 * 32} | {3 * 48 * 8} |" in table
    assert f"| frozen-proposer | 0, 1, 2 | 120 | 0 | {3 * 48 * 8} |" in table
    assert f"| separate | 0, 1 | 120 | {3 * 32} | {3 * 48} |" in table


def test_a_document_with_a_place_too_many_or_too_few_is_refused():
    document = "<!-- table:a -->\nold\n<!-- end -->\n"
    assert tables.fill(document, {"a": "| x |"}) == "<!-- table:a -->\n| x |\n<!-- end -->\n"
    for wrong in ({}, {"a": "", "b": ""}, {"b": ""}):
        with pytest.raises(DataError, match="places for the tables"):
            tables.fill(document, wrong)
