"""What every other machine of a cluster has to have, before anything starts there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError, RayTaskError

from launch import ray_machines
from launch.installation import CODE, differences, installation
from launch.placement import Machine, place
from launch.plan.devices import GIB, Device, smallest
from launch.private_folder import RECORD_FILE
from launch.ray_instance import GetTimeoutError
from launch.ray_machines import Machines
from shared.config_file import load_config
from shared.errors import PlacementError, PrimezeroError

HERE, OTHER = Machine("1", "10.0.0.1", 8, 1), Machine("2", "10.0.0.2", 8, 2)


class OtherMachine:
    """A keeper, as Ray would hand it out; files: what is there."""

    def __init__(
        self, files: dict[Path, bytes | Exception], *gpus: Device, software: dict[str, str] | None = None
    ) -> None:
        gpus = gpus or (Device("a GPU", 80 * GIB),) * 2
        self.read = SimpleNamespace(remote=files.get)
        self.gpu_room = SimpleNamespace(remote=lambda count: smallest(gpus[:count]).room)
        self.installation = SimpleNamespace(remote=lambda: installation() | (software or {}))


def answered(answer: object, timeout: float) -> object:
    """What Ray gives for what has been asked of a machine."""
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Checks a run with two learner ranks, one of them elsewhere, or with one."""
    monkeypatch.setattr(ray_machines, "ray", SimpleNamespace(get=answered))
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
    check(OtherMachine(files(tmp_path), Device("a larger one", 140 * GIB), Device("another", 140 * GIB, 59 * GIB)))


@pytest.mark.parametrize(
    ("software", "said"),
    [({CODE: "0123"}, "primezero's code 0123 instead of"), ({"torch": "2.12.0"}, r"torch 2\.12\.0 instead of 2")],
)
def test_every_machine_needs_the_same_software(check, tmp_path, software, said):
    with pytest.raises(PlacementError, match=rf"10\.0\.0\.2 has other software than this one: {said}"):
        check(OtherMachine(files(tmp_path), software=software))


def test_any_change_of_the_code_and_any_other_library_is_a_difference(tmp_path, monkeypatch):
    for package in ("shared", "launch/plan"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "one.py").write_text("1")
    before = installation(tmp_path)
    assert before["torch"] != "none"
    assert differences(before, installation(tmp_path)) == []
    (tmp_path / "launch/plan/one.py").write_text("2")
    assert len(differences(before, installation(tmp_path))) == 1
    (tmp_path / "launch/plan/one.py").write_text("1")
    (tmp_path / "launch/plan/one.py").rename(tmp_path / "launch/plan/two.py")
    assert len(differences(before, installation(tmp_path))) == 1
    assert differences({"ray": "2"}, {}) == ["ray none instead of 2"]


def test_every_machine_needs_the_model(check, tmp_path):
    for other in (OtherMachine({}), OtherMachine(files(tmp_path, model=b"another's"))):
        with pytest.raises(PlacementError, match=r"10\.0\.0\.2 does not have this model at .*/model"):
            check(other)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RayTaskError("read", "a page of\ntraceback", OSError(13, "Permission denied", "/model/config.json")),
            "Permis",
        ),
        (GetTimeoutError("60 s"), "60 s"),
    ],
)
def test_one_that_cannot_say_what_it_has_is_named(check, tmp_path, error, said):
    with pytest.raises(PlacementError, match=rf"^machine 10\.0\.0\.2 cannot take part: [^\n]*{said}"):
        check(OtherMachine({tmp_path / "model/config.json": error}))


def test_where_ranks_are_the_run_s_folder_has_to_be(check, tmp_path):
    for record in (None, b"another start's"):
        other = OtherMachine(files(tmp_path, record=record))
        with pytest.raises(PlacementError, match=r"ranks on 10\.0\.0\.2 .*--run\.folder.*lower learner\.ranks"):
            check(other)
        check(other, ranks=1)  # a worker alone needs it not


@pytest.fixture
def spread(tmp_path, monkeypatch):
    """Machines of a run, one of whose workers is elsewhere; answer: what Ray says when it is asked there."""

    def made(answer: Exception | list[int]) -> Machines:
        words = ["--placement.kind=cluster", "--placement.ray_address=10.0.0.1:6379", "--placement.device=cuda"]
        config = load_config(None, [*words, "--rollout.workers=2"])
        machines = Machines(config, tmp_path, tmp_path, lambda _: None, lambda: None)
        machines._placement = place(config, replace(HERE, gpus=2), [replace(OTHER, gpus=1)])
        machines._keepers = {OTHER.id: SimpleNamespace(end=SimpleNamespace(remote=lambda names: answer))}
        monkeypatch.setattr(ray_machines, "ray", SimpleNamespace(get=answered))
        return machines

    return made


def elsewhere(machines: Machines) -> str:
    return next(name for name, at in machines._placement.places.items() if at.machine.id == OTHER.id)


def test_nothing_takes_the_place_of_what_may_still_run_on_a_machine_that_does_not_answer(spread):
    machines = spread(GetTimeoutError())
    with pytest.raises(PrimezeroError, match=r"10\.0\.0\.2 does not answer.*none is started in its place"):
        machines.end([elsewhere(machines)])
    machines.end(["learner-0"])  # of which nothing is there


def test_what_was_on_a_machine_that_is_gone_has_ended(spread):
    machines = spread(RayActorError())
    machines.end([elsewhere(machines)])


def test_a_machine_that_ray_has_given_up_is_lost_with_all_that_had_its_place_there(spread, monkeypatch):
    machines = spread([])
    nodes = [{"NodeID": HERE.id, "Alive": True}, {"NodeID": OTHER.id, "Alive": True}, {"NodeID": "3", "Alive": False}]
    asked: list[int] = []
    monkeypatch.setattr(ray_machines, "ray", SimpleNamespace(nodes=lambda: asked.append(1) or nodes))
    monkeypatch.setattr(ray_machines, "LOOK_S", 0.0)
    assert machines.lost() == {}
    nodes[1]["Alive"] = False
    assert machines.lost() == {elsewhere(machines): "10.0.0.2"}
    nodes.append({"NodeID": "4", "Alive": True})  # it has come back, as another
    assert machines.lost() == {elsewhere(machines): "10.0.0.2"}
    assert len(asked) == 3
    monkeypatch.setattr(ray_machines, "LOOK_S", 1000.0)
    assert machines.lost()
    machines._keepers.clear()  # a run on one machine asks nothing
    monkeypatch.setattr(ray_machines, "LOOK_S", 0.0)
    machines.lost()
    assert len(asked) == 3


def test_what_cannot_be_killed_elsewhere_is_an_error_too(spread):
    machines = spread([4711])
    with pytest.raises(PrimezeroError, match=r"cannot be killed \(pid 4711\)"):
        machines.end([elsewhere(machines)])


def test_no_machine_may_have_less_room_than_the_plan_is_made_for_on_the_gpus_that_are_used(check, tmp_path):
    whole, small = Device("a GPU", 80 * GIB), Device("another", 40 * GIB)
    for gpus in ((whole, small), (whole, Device("a GPU", 80 * GIB, 40 * GIB))):
        with pytest.raises(
            PlacementError, match=r"10\.0\.0\.2 has a GPU of which 40\.0 GiB can be had, less than the 80"
        ):
            check(OtherMachine(files(tmp_path), *gpus))
    check(OtherMachine(files(tmp_path), whole, whole, small))
