import stat

import pytest

from launch.run_folder import open_run_folder
from shared.config import load_config
from shared.errors import ConfigError


def config_for(folder, **overrides):
    return load_config(
        None, [f"--run.folder={folder}", "--run.name=mine", *[f"--{k}={v}" for k, v in overrides.items()]]
    )


def test_the_folder_is_private_and_holds_the_resolved_configuration(tmp_path):
    config = config_for(tmp_path / "runs", **{"learner.lr": 0.5})
    with open_run_folder(config) as folder:
        assert folder == tmp_path / "runs/mine"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert load_config(folder / "config.toml") == config


def test_a_second_run_of_the_same_name_is_refused_unless_told_otherwise(tmp_path):
    with open_run_folder(config_for(tmp_path)) as folder:
        (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"--run\.overwrite true"), open_run_folder(config_for(tmp_path)):
        pass
    assert (folder / "metrics.jsonl").exists()
    with open_run_folder(config_for(tmp_path, **{"run.overwrite": "true"})):
        assert not (folder / "metrics.jsonl").exists()


def test_a_run_that_is_still_going_is_never_overwritten(tmp_path):
    overwriting = config_for(tmp_path, **{"run.overwrite": "true"})
    with (
        open_run_folder(config_for(tmp_path)) as folder,
        pytest.raises(ConfigError, match="still going"),
        open_run_folder(overwriting),
    ):
        pass
    assert (folder / "config.toml").exists()


def test_a_folder_that_is_no_run_is_never_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.toml").write_text("years = 7")
    overwriting = config_for(tmp_path, **{"run.overwrite": "true"})
    with pytest.raises(ConfigError, match="not a run"), open_run_folder(overwriting):
        pass
    assert (tmp_path / "mine/config.toml").read_text() == "years = 7"


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the run folder"), open_run_folder(config_for(tmp_path / "file")):
        pass
