import re
from dataclasses import replace

from evaluation_samples import SlicedEnvironment, compared

from launch.evaluation_report import BandReport, Report
from launch.evaluation_results import problem_set
from launch.evaluation_table import table
from shared.episodes import Task

SAMPLES = ["+-", "--", "++", "-+"]


def report(*, baseline: bool = False, held_out: bool = False, samples: bool = False) -> Report:
    model, other = ("+++-", SAMPLES if samples else ()), ("+---", SAMPLES[::-1] if samples else ())
    models = (model, other) if baseline else (model,)
    problems = [each for task in Task for each in compared(task, *models)]
    trainable = problem_set(SlicedEnvironment(), problems)
    assert trainable is not None
    apart = problem_set(SlicedEnvironment(), problems[:3]) if held_out else None
    return Report(
        model="models/mine",
        baseline_model="models/other" if baseline else None,
        dtype="float32",
        max_response_tokens=12,
        problems_per_task=4,
        samples=2 if samples else 0,
        temperature=1.0 if samples else None,
        bands=[BandReport(5, 99_991, trainable, apart), BandReport(2, 13, trainable, None)],
    )


def test_everything_fits_into_80_columns():
    text = table(report(baseline=True, held_out=True, samples=True))
    assert max(map(len, text.splitlines())) <= 80
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_band_has_a_row_for_each_task_and_the_mean():
    lines = table(report()).splitlines()
    at = lines.index("primes 5..99991, greedy")
    assert lines[at + 1].split() == ["n", "accuracy", "95%", "interval", "unparsable", "truncated", "tokens"]
    assert lines[at + 2].split() == ["deduction", "4", "0.750", "0.301", "..", "0.954", "0.000", "0.000", "4.0"]
    assert [line.split()[0] for line in lines[at + 2 : at + 6]] == ["deduction", "abduction", "induction", "mean"]
    assert lines[at + 5].split()[1:3] == ["12", "0.750"]
    assert "primes 2..13, greedy" in lines


def test_of_one_task_alone_there_is_no_mean():
    models = (("+++-", SAMPLES),)
    one = problem_set(SlicedEnvironment(), compared(Task.INDUCTION, *models))
    text = table(replace(report(samples=True), bands=[BandReport(5, 101, one, None)]))
    assert "mean" not in text
    assert re.search(r"^pass@1 +0\.500$", text, re.MULTILINE)
    assert re.search(r"^next prime +0\.500$", text, re.MULTILINE)


def test_slices_held_out_problems_and_their_slices_stand_apart():
    text = table(report(held_out=True))
    held_out = re.search(r"^held out\n  deduction +3 +1\.000", text, re.MULTILINE)
    easy = re.search(r"^easy\n  deduction +1 +1\.000.*\n  abduction", text, re.MULTILINE)
    assert held_out is not None
    assert easy is not None
    assert re.search(r"^held out, easy\n  deduction +1 ", text, re.MULTILINE)
    assert "held out" not in table(report())


def test_a_second_model_stands_beside_with_the_difference():
    text = table(report(baseline=True))
    assert "baseline model  models/other" in text
    assert re.search(r"greedy, baseline model\n.*\ndeduction +4 +0\.250", text)
    assert re.search(r"less baseline model.*\n.*\ndeduction +4 +\+0\.500 +-0\.\d+ \.\. \+0\.\d+", text)
    assert "difference" not in table(report())


def test_tricks_and_pass_at_k_have_a_column_for_each_task():
    text = table(report(baseline=True, samples=True))
    assert re.search(r"^ +deduction +abduction +induction +mean$", text, re.MULTILINE)
    assert re.search(r"^pass@1 +0\.500 +0\.500 +0\.500 +0\.500$", text, re.MULTILINE)
    assert re.search(r"^pass@2 +0\.750", text, re.MULTILINE)
    assert re.search(r"^pass@2 baseline model +0\.750", text, re.MULTILINE)
    assert re.search(r"^constant +0\.250 +0\.250 +0\.250 +0\.250$", text, re.MULTILINE)
    assert re.search(r"^next prime +0\.500$", text, re.MULTILINE)
    assert "pass@" not in table(report())
