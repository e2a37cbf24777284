import msgspec
import numpy as np
import pytest
from experiment_runs import curve, fabricated

from launch.experiments import plots
from launch.experiments.__main__ import main
from launch.experiments.data import DataError, data_path, read_data, write_data
from launch.experiments.plan import PROPOSER, planned_runs
from launch.experiments.report import data_folder, write_report
from launch.experiments.results import load_results
from launch.experiments.tables import all_tables, fill
from launch.model_recipe import ROOT


def test_the_command_fills_the_document_and_draws_every_figure_it_shows(docs, capsys):
    assert main(["report", "--docs", str(docs)]) == 0
    assert "7 of 22 planned runs" in capsys.readouterr().out
    text = (docs / "learning.md").read_text()
    assert "+0.030 ± 0.127 (2 pairs)" in text
    shown = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert sorted(shown) == sorted(f"learning/{path.name}" for path in (docs / "learning").glob("*.svg"))
    for figure in shown:
        drawn = (docs / figure).read_text()
        assert "<svg" in drawn
        assert "training steps (batches)" in drawn
    assert "uniform (missing)" in (docs / "learning/proposer.svg").read_text()
    assert "full (3 seeds)" in (docs / "learning/proposer.svg").read_text()


def test_a_report_of_the_same_data_is_the_same_to_the_byte(docs):
    def everything():
        write_report(docs)
        return {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}

    assert everything() == everything()


def test_a_report_without_any_data_is_all_missing(tmp_path):
    (tmp_path / "learning.md").write_text((ROOT / "docs/learning.md").read_text())
    assert write_report(tmp_path) == 0
    assert f"| ema-1 {'| missing ' * 9}|" in (tmp_path / "learning.md").read_text()
    assert "long" in (tmp_path / "learning/long-health.svg").read_text()


def test_lines_can_be_told_apart_without_colour(docs):
    figure = plots.proposer_figure(load_results(data_folder(docs)))
    (axes,) = figure.axes
    styles = {(line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(styles) == len(axes.lines) == len(PROPOSER.variants)
    assert axes.get_ylabel() == "greedy accuracy, mean of tasks"


def test_the_curve_is_the_mean_over_seeds_in_a_band_of_all(docs):
    (axes,) = plots.proposer_figure(load_results(data_folder(docs))).axes
    assert axes.lines[0].get_ydata()[-2] == pytest.approx(0.75)
    band = axes.collections[0].get_paths()[0].vertices
    assert set(np.round(band[band[:, 0] == 110][:, 1], 6)) == {0.7, 0.8}


def test_data_of_another_plan_are_refused(docs):
    (run,) = planned_runs(["ema"], [0])
    path = data_path(data_folder(docs), run)
    write_data(path, msgspec.structs.replace(read_data(path, run), overrides=["--learner.lr=1"]))
    with pytest.raises(DataError, match="not of the planned run ema-0"):
        load_results(data_folder(docs))
    path.write_text("{}")
    with pytest.raises(DataError, match="not a run's data"):
        load_results(data_folder(docs))


def test_runs_that_began_with_different_models_are_not_compared(docs):
    (run,) = planned_runs(["ema"], [0])
    write_data(data_path(data_folder(docs), run), fabricated(run, curve(0.8), model="another"))
    with pytest.raises(DataError, match="ema-0 and full-0 began with different models"):
        load_results(data_folder(docs))


def test_what_is_wrong_is_a_message_and_exit_code_one(capsys):
    assert main(["run", "--only", "nothing"]) == 1
    assert main(["run", "--seeds", "one"]) == 1
    said = capsys.readouterr().err
    assert "no variant nothing" in said
    assert "--seeds one: expected whole numbers" in said


def test_the_committed_tables_are_those_of_the_committed_data():
    document = (ROOT / "docs/learning.md").read_text()
    assert fill(document, all_tables(load_results(data_folder(ROOT / "docs")))) == document
