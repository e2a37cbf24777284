import pytest
from experiment_runs import curve, fabricated

from launch.experiments import runner
from launch.experiments.data import data_path, write_data
from launch.experiments.plan import planned_runs
from launch.experiments.report import data_folder
from launch.model_recipe import ROOT


@pytest.fixture
def session(tmp_path):
    """Runs the part of the plan with variants full and ema, seed 0 and 1, on a fake; returns (fake, lines, failed)."""

    def go(fake, only=("full", "ema"), seeds=(0, 1)):
        lines = []
        failed = runner.run_plan(
            planned_runs(only, seeds), tmp_path / "out", tmp_path / "data", execute=fake, say=lines.append
        )
        return lines, [run.name for run in failed]

    return go


@pytest.fixture
def docs(tmp_path):
    """A docs folder with the real document and fabricated data: full (0.80, 0.70, 0.75), ema (0.84, 0.72), long-0."""
    runs = {run.name: run for run in planned_runs()}
    rising_and_falling = [0.3] * 20 + [0.9] * 5 + [0.8] * 36
    accuracies = {
        "full-0": curve(0.80),
        "full-1": curve(0.70),
        "full-2": curve(0.75),
        "ema-0": curve(0.84),
        "ema-1": curve(0.72),
        "paper-1": curve(0.50),
        "long-0": rising_and_falling,
    }
    (tmp_path / "learning.md").write_text((ROOT / "docs/learning.md").read_text())
    for name, values in accuracies.items():
        write_data(data_path(data_folder(tmp_path), runs[name]), fabricated(runs[name], values))
    return tmp_path
