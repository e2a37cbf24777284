import pytest
from recorded_runs import step_record, write_records

from launch.run_records import (
    default_settings,
    known_config,
    number,
    read_objects,
    read_run,
    tokenizer_folder,
    unreadable_lines,
)
from shared.config_file import load_config
from shared.errors import ConfigError

CURRICULUM = "--environment.curriculum=[[2, 7]]"


def test_a_run_is_read_as_it_was_written_and_left_as_it_was(tmp_path):
    folder = write_records(tmp_path / "mine", 3, **{"learner.lr": 0.5})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run = read_run(folder)
    assert [record["step"] for record in run.steps] == [1, 2, 3]
    assert [record["version"] for record in run.evaluations] == [0, 2]
    assert (run.name, run.summary, run.restarts) == ("mine", None, [])
    assert (run.settings["learner.lr"], run.settings["run.time_limit_s"]) == (0.5, "none")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_torn_and_foreign_lines_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[3]\n\xff\xfe\n\n{"step": 2}\n{"step": 3, "lear')
    assert read_objects(path) == [{"step": 1}, {"step": 2}]
    assert read_objects(tmp_path / "none.jsonl") == []


def test_lines_that_are_torn_by_a_writer_at_work_are_no_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert unreadable_lines(path) == 0
    path.write_text('{"step": 1}\n{"step"')
    assert unreadable_lines(path) == 0
    path.write_text('{"step": 1}\n\x00\x00\n[]\n{"step": 2}\n')
    assert unreadable_lines(path) == 2


def test_a_folder_that_is_no_run_says_what_to_name(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run: it has no config.toml; name the folder of a run"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_run(tmp_path / "none")


def test_settings_of_another_version_are_read_and_what_is_known_of_them_used(tmp_path):
    folder = write_records(tmp_path / "old", **{"learner.lr": 0.5, "environment.curriculum": "[[2, 7]]"})
    with (folder / "config.toml").open("a") as file:
        file.write("\n[gone]\nkey = 1\n")
    run = read_run(folder)
    assert run.settings["gone.key"] == 1
    config = known_config(run)
    assert (config.learner.lr, config.environment.curriculum, config.run.time_limit_s) == (0.5, ((2, 7),), None)
    assert config == load_config(None, ["--run.name=old", "--run.steps=4", "--learner.lr=0.5", CURRICULUM])


def test_the_tokenizer_is_the_trained_models_else_that_of_the_model_it_began_with(tmp_path):
    folder = write_records(tmp_path / "mine")
    settings = {"model.path": str(tmp_path / "other")}
    assert tokenizer_folder(folder, settings) == folder / "model"
    (folder / "model" / "tokenizer.json").rename(folder / "tokenizer.json")
    assert tokenizer_folder(folder, settings) is None
    assert tokenizer_folder(folder, {"model.path": str(folder)}) == folder


def test_a_number_is_found_only_where_there_is_one():
    record = step_record(2)
    assert number(record, "learner", "entropy") == 0.25
    assert number(record, "staleness_max") == 1.0
    missing = [("learner",), ("learner", "none"), ("step", "deeper"), ("none", "deeper")]
    assert [number(record, *path) for path in missing] == [None] * 4
    assert number({"flag": True, "null": None, "text": "1"}, "flag") is None


def test_defaults_are_spelled_as_in_a_file():
    defaults = default_settings()
    assert defaults["run.time_limit_s"] == "none"
    assert defaults["learner.betas"] == [0.9, 0.95]
