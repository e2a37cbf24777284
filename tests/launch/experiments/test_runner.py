import json

import pytest
from experiment_runs import FakePrimezero

from launch.experiments import runner
from launch.experiments.plan import planned_runs
from launch.run_folder import CONFIG_FILE


def test_every_run_is_trained_once_from_one_model_a_seed_and_its_data_kept(session, tmp_path):
    fake = FakePrimezero()
    lines, failed = session(fake)
    assert fake.calls == ["tiny-0", "full-0", "tiny-1", "full-1", "ema-0", "ema-1"]
    assert failed == []
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "ema-0.json",
        "ema-1.json",
        "full-0.json",
        "full-1.json",
    ]
    assert "time left unknown" in lines[0]
    assert "left" in lines[2]
    assert "unknown" not in lines[2]


def test_finished_runs_are_skipped_and_lost_data_is_kept_again(session, tmp_path):
    session(FakePrimezero())
    (tmp_path / "data/ema-1.json").unlink()
    again = FakePrimezero()
    lines, _ = session(again)
    assert again.calls == []
    assert all("finished before" in line for line in lines)
    assert (tmp_path / "data/ema-1.json").exists()


def cut_off(folder):
    (folder / "summary.json").unlink()


def stopped_early(folder):
    (folder / "summary.json").write_text(json.dumps({"steps": 119}))


def killed_before_its_provenance(folder):
    (folder / "experiment.json").unlink()


def another_configuration(folder):
    text = (folder / CONFIG_FILE).read_text()
    assert "lr = 0.001" in text
    (folder / CONFIG_FILE).write_text(text.replace("lr = 0.001", "lr = 0.002"))


def an_older_configuration(folder):
    (folder / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text() + '\n[elsewhere]\nkey = "value"\n')


def another_model(folder):
    (folder.parent / "models/tiny-0/model.safetensors").write_text("other weights")


@pytest.mark.parametrize(
    "spoil",
    [
        cut_off,
        stopped_early,
        killed_before_its_provenance,
        another_configuration,
        an_older_configuration,
        another_model,
    ],
)
def test_a_run_that_is_not_whole_or_not_the_same_is_run_again(session, tmp_path, spoil):
    session(FakePrimezero())
    spoil(tmp_path / "out/ema-0")
    again = FakePrimezero()
    session(again, only=["ema"])
    assert again.trained() == ["ema-0"]


def test_a_run_that_fails_is_reported_and_the_next_one_goes_on(session, tmp_path):
    fake = FakePrimezero(failing=["full-0"])
    lines, failed = session(fake)
    assert failed == ["full-0"]
    assert fake.trained() == ["full-0", "full-1", "ema-0", "ema-1"]
    assert any("full-0: FAILED: see" in line and "full-0.log" in line for line in lines)
    assert not (tmp_path / "data/full-0.json").exists()


def test_a_run_that_was_stopped_gently_counts_as_failed(session, tmp_path):
    class Stopped(FakePrimezero):
        def __call__(self, arguments, log):
            code = super().__call__(arguments, log)
            if arguments[0] == "train":
                stopped_early(tmp_path / "out" / "full-0")
            return code

    _, failed = session(Stopped(), only=["full"], seeds=[0])
    assert failed == ["full-0"]


def test_time_left_counts_the_unfinished_steps_at_the_pace_so_far(tmp_path):
    runs = planned_runs(["full", "long"], [0, 1])
    assert [run.name for run in runs] == ["full-0", "full-1", "long-0", "long-1"]
    for run, seconds in ((runs[0], 120.0), (runs[2], 960.0)):
        (tmp_path / run.name).mkdir()
        provenance = {"command": "", "commit": "", "model_sha256": "", "seconds": seconds}
        (tmp_path / run.name / "experiment.json").write_text(json.dumps(provenance))
    # 1080 s for 720 steps; 120 and 600 steps are ahead.
    assert runner._time_left(runs[1:], runs, tmp_path) == "about 0 h 18 min left"
