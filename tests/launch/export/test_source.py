import json
from pathlib import Path

import pytest
from recorded_runs import write_records

from launch.export.source import find_source
from launch.run_records import read_run
from shared.errors import CheckpointError


def make_run(tmp_path: Path, checkpoints=(), finished_at: int | None = None) -> Path:
    folder = write_records(tmp_path / "mine")
    for step in checkpoints:
        (folder / f"checkpoints/step-{step:06}").mkdir(parents=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints/.step-000009").mkdir()
    if finished_at is not None:
        (folder / "summary.json").write_text(json.dumps({"steps": finished_at}))
        (folder / "model/config.json").write_text("{}")
    return folder


def found(folder: Path, step: int | None = None) -> tuple[int, str]:
    source = find_source(read_run(folder), step)
    return source.step, "model" if source.checkpoint is None else source.checkpoint.name


def test_a_finished_run_gives_the_model_that_it_ended_with(tmp_path):
    folder = make_run(tmp_path, [2, 4], finished_at=4)
    assert found(folder) == found(folder, 4) == (4, "model")
    assert found(folder, 2) == (2, "step-000002")


def test_a_run_that_goes_on_gives_its_newest_checkpoint(tmp_path):
    folder = make_run(tmp_path, [2, 1_000_000, 4])
    assert found(folder) == (1_000_000, "step-1000000")
    assert found(folder, 2) == (2, "step-000002")


def test_a_model_that_is_not_there_is_refused_naming_those_that_are(tmp_path):
    folder = make_run(tmp_path, [2], finished_at=4)
    with pytest.raises(CheckpointError, match="no checkpoint of step 3: it has those of 2, 4"):
        found(folder, 3)


def test_a_model_that_was_removed_is_not_among_those_that_there_are(tmp_path):
    folder = make_run(tmp_path, [2], finished_at=4)
    (folder / "model/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4: it has those of 2$"):
        found(folder, 4)


def test_a_run_without_a_model_says_what_to_wait_for(tmp_path):
    with pytest.raises(CheckpointError, match="no model yet: its first checkpoint is still to come"):
        found(make_run(tmp_path))
