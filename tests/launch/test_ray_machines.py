"""What every other machine of a cluster has to have, before anything starts there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import ray_machines
from launch.placement import Machine, place
from launch.plan.devices import GIB, Device
from launch.private_folder import RECORD_FILE
from launch.ray_machines import Machines
from shared.config_file import load_config
from shared.errors import PlacementError

HERE, OTHER = Machine("1", "10.0.0.1", 8, 1), Machine("2", "10.0.0.2", 8, 2)


class OtherMachine:
    """A keeper, as Ray would hand it out; files: what is there."""

    def __init__(self, files: dict[Path, bytes], gpu_gib: float = 80) -> None:
        self.read = SimpleNamespace(remote=files.get)
        self.gpu_memory = SimpleNamespace(remote=lambda: int(gpu_gib * GIB))


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Checks a run with two learner ranks, one of them elsewhere, or with one."""
    monkeypatch.setattr(ray_machines, "_ask", lambda answer: answer)
    monkeypatch.setattr(ray_machines, "devices_here", lambda: [Device("a GPU", 80 * GIB)])
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / RECORD_FILE).write_text("this start's")

    def checked(other: OtherMachine, ranks: int = 2) -> None:
        words = ["--placement.kind=cluster", "--placement.ray_address=10.0.0.1:6379", "--placement.device=cuda"]
        config = load_config(None, [*words, f"--learner.ranks={ranks}", f"--model.path={tmp_path / 'model'}"])
        machines = Machines(config, tmp_path, tmp_path, lambda _: None, lambda: None)
        machines._keepers = {OTHER.id: other}
        machines._check_others(place(config, HERE, [OTHER]))

    return checked


def files(folder: Path, *, model: bytes = b"{}", record: bytes | None = b"this start's") -> dict[Path, bytes]:
    found = {folder / "model/config.json": model}
    return found if record is None else found | {folder / RECORD_FILE: record}


def test_one_that_has_everything_takes_part(check, tmp_path):
    check(OtherMachine(files(tmp_path)))
    check(OtherMachine(files(tmp_path), gpu_gib=140))


def test_every_machine_needs_the_model(check, tmp_path):
    for other in (OtherMachine({}), OtherMachine(files(tmp_path, model=b"another's"))):
        with pytest.raises(PlacementError, match=r"10\.0\.0\.2 does not have this model at .*/model"):
            check(other)


def test_where_ranks_are_the_run_s_folder_has_to_be(check, tmp_path):
    for record in (None, b"another start's"):
        other = OtherMachine(files(tmp_path, record=record))
        with pytest.raises(PlacementError, match=r"ranks on 10\.0\.0\.2 .*--run\.folder.*lower learner\.ranks"):
            check(other)
        check(other, ranks=1)  # a worker alone needs it not


def test_no_machine_may_have_smaller_gpus_than_the_plan_is_made_for(check, tmp_path):
    with pytest.raises(PlacementError, match=r"10\.0\.0\.2 has a GPU of 40\.0 GiB, less than"):
        check(OtherMachine(files(tmp_path), gpu_gib=40))
