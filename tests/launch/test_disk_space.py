"""Whether a run can fit at all, with disks of any size."""

import math

import pytest
from model_files import SHAPES, make_model_folder

from launch import disk_space
from launch.disk_space import check_disk, checkpoints_at_once
from shared.config_file import load_config
from shared.errors import DiskError

PARAMETERS = sum(math.prod(shape) for shape in SHAPES.values())


@pytest.fixture
def configured(tmp_path):
    folder = make_model_folder(tmp_path / "m")

    def make(**overrides):
        settings = {"model.path": folder, "run.folder": tmp_path / "runs", "run.name": "r", "sync.transport": "shm"}
        return load_config(None, [f"--{key}={value}" for key, value in (settings | overrides).items()])

    return make


def free(monkeypatch, on_disk, in_memory=10**9):
    monkeypatch.setattr(
        disk_space, "free_bytes", lambda path: in_memory if path == disk_space.SHARED_MEMORY else on_disk
    )


@pytest.mark.parametrize(("dtype", "each", "model"), [("bfloat16", 2 + 4 + 8, 2), ("float32", 4 + 8, 4)])
def test_a_run_that_just_fits_passes_and_one_byte_less_is_refused_with_the_numbers(
    configured, monkeypatch, dtype, each, model
):
    config = configured(**{"model.dtype": dtype, "run.keep_checkpoints": 3})
    needed = PARAMETERS * (model + 4 * each)
    free(monkeypatch, needed)
    check_disk(config)
    free(monkeypatch, needed - 1)
    with pytest.raises(DiskError, match=r"needed in .*runs/r.*each of 4 checkpoints.*--run\.folder"):
        check_disk(config)


def test_what_the_run_has_there_already_counts_as_room(configured, monkeypatch):
    config = configured()
    (config.run_folder / "checkpoints/step-000020").mkdir(parents=True)
    free(monkeypatch, 0)
    with pytest.raises(DiskError):
        check_disk(config)
    (config.run_folder / "checkpoints/step-000020/policy.pt").write_bytes(bytes(PARAMETERS * (2 + 3 * 14)))
    check_disk(config)


def test_a_folder_that_cannot_be_looked_into_is_not_judged_here(configured):
    check_disk(configured(**{"run.folder": "x" * 300}))


def test_shared_memory_must_hold_the_weights_where_they_travel_through_it(configured, monkeypatch):
    free(monkeypatch, 10**9, in_memory=PARAMETERS * 2 - 1)
    with pytest.raises(DiskError, match="/dev/shm"):
        check_disk(configured())
    check_disk(configured(**{"sync.transport": "nccl"}))


@pytest.mark.parametrize(
    ("steps", "every", "keep", "count"), [(100, 20, 2, 3), (100, 0, 2, 1), (30, 20, 2, 2), (0, 20, 2, 1)]
)
def test_no_more_checkpoints_are_counted_than_are_written(configured, steps, every, keep, count):
    settings = {"run.steps": steps, "run.checkpoint_every": every, "run.keep_checkpoints": keep}
    assert checkpoints_at_once(configured(**settings)) == count
