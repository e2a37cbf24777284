import json
import sys
import types

import pytest
from run_records import evaluation_record, step_record

from launch.records import Records
from launch.supervisor import Origin, Restart
from launch.tracking import tracker
from launch.tracking.tracker import Tracking, check_tracking
from shared.config_file import load_config
from shared.errors import ConfigError, InstallationError


def config(tmp_path, *names: str):
    listed = ", ".join(f'"{name}"' for name in names)
    return load_config(None, ["--run.folder", str(tmp_path), "--tracking.names", f"[{listed}]"])


def record(config, folder, steps, *, version=0, evaluations=(), back_to=None, said=None):
    tracking = Tracking(config, folder, version, [].append if said is None else said.append)
    tracking.catch_up(Records(folder, version))
    for step in steps:
        tracking.step(step_record(step))
    for evaluated in evaluations:
        tracking.evaluation(evaluation_record(evaluated))
    if back_to is not None:
        tracking.restart(Restart("learner", "a fault", 1, 5, 0.0, Origin(1, back_to)))
        for step in range(back_to + 1, max(steps) + 1):
            tracking.step(step_record(step))
    tracking.close()


def scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return [(scalar.step, round(scalar.value, 6)) for scalar in events.Scalars(tag)]


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard")


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_reads_every_version_once_over_a_learner_that_goes_back_and_a_resumed_run(tmp_path):
    asked = config(tmp_path, "tensorboard")
    record(asked, tmp_path, [1, 2, 3], evaluations=[0], back_to=1)
    # The launcher was killed with step 3 on record and the checkpoint of step 2 to go on from.
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step_record(step)) + "\n" for step in (1, 2, 3)))
    record(asked, tmp_path, [3, 4], version=2, evaluations=[4])
    assert scalars(tmp_path, "tasks/deduction/accuracy") == [(1, 0.01), (2, 0.02), (3, 0.03), (4, 0.04)]
    assert scalars(tmp_path, "evaluation/accuracy") == [(0, 0.5), (4, 0.5)]
    assert scalars(tmp_path, "learner/entropy")[0] == (1, 0.5)


@pytest.mark.usefixtures("tensorboard")
def test_what_a_killed_launcher_did_not_record_is_caught_up_with(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step_record(step)) + "\n" for step in (1, 2, 3)))
    record(config(tmp_path, "tensorboard"), tmp_path, [3], version=2)
    assert [step for step, _ in scalars(tmp_path, "learner/entropy")] == [1, 2, 3]


def test_without_tensorboard_the_run_goes_on_and_says_so(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "launch.tracking.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    said: list[str] = []
    check_tracking(config(tmp_path, "tensorboard"))
    record(config(tmp_path, "tensorboard"), tmp_path, [1], said=said)
    assert len(said) == 1
    assert "pip install tensorboard" in said[0]


@pytest.mark.parametrize("content", ["", "[]", '{"tensorboard": 3}'])
def test_a_damaged_record_of_how_far_they_have_come_is_a_clear_error(tmp_path, content):
    (tmp_path / "tracking.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tracking\.json, .* is damaged: remove it"):
        Tracking(config(tmp_path), tmp_path, 0, print)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_named_tracker_that_is_not_installed_is_said_before_anything_starts(tmp_path, monkeypatch, name):
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda asked: None)
    with pytest.raises(InstallationError, match=f"pip install {name}"):
        check_tracking(config(tmp_path, name))


class Fake:
    """Stands for the three libraries: notes what it is called with."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, float]] = []
        self.calls: list[tuple] = []
        self.fails = False

    def log(self, version: int, entropy: float | None) -> None:
        if self.fails:
            raise ConnectionError("no route")
        if entropy is not None:
            self.logged.append((version, entropy))


def fake_wandb(fake: Fake) -> types.ModuleType:
    class Run:
        id = "abc"

        def define_metric(self, name, step_metric):
            fake.calls.append(("define", name, step_metric))

        def log(self, values):
            fake.log(values["version"], values.get("learner/entropy"))

        def finish(self):
            fake.calls.append(("finish",))

    def init(*, project, name, id, resume, config, dir, settings):
        fake.calls.append(("init", project, name, id, resume, config["run.seed"]))
        return Run()

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, dict
    return module


def fake_mlflow(fake: Fake) -> types.ModuleType:
    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"experiment {name}"

        def create_run(self, experiment, run_name):
            fake.calls.append(("create", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def update_run(self, run_id, status):
            fake.calls.append(("update", run_id, status))

        def log_param(self, run_id, key, value):
            assert isinstance(value, str)

        def log_batch(self, run_id, metrics):
            found = {metric[0]: metric for metric in metrics}
            step = metrics[0][3]
            fake.log(step, found["learner/entropy"][1] if "learner/entropy" in found else None)

        def set_terminated(self, run_id):
            fake.calls.append(("terminated", run_id))

    module = types.ModuleType("mlflow")
    module.MlflowClient = Client
    return module


def fake_trackio(fake: Fake) -> types.ModuleType:
    class Run:
        def log(self, values, step):
            fake.log(step, values.get("learner/entropy"))

        def finish(self):
            fake.calls.append(("finish",))

    def init(*, project, name, config, resume):
        fake.calls.append(("init", project, name, resume))
        return Run()

    module = types.ModuleType("trackio")
    module.init = init
    return module


@pytest.fixture
def fake(monkeypatch) -> Fake:
    fake = Fake()
    for module in (fake_wandb(fake), fake_mlflow(fake), fake_trackio(fake)):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda *metric: metric
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return fake


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_service_gets_every_version_once_and_a_resumed_run_goes_on_in_the_same_record(tmp_path, fake, name):
    asked = config(tmp_path, name)
    record(asked, tmp_path, [1, 2, 3], evaluations=[0], back_to=1)
    record(asked, tmp_path, [3, 4], version=2)
    assert [version for version, _ in fake.logged] == [1, 2, 3, 4]
    opened = [call for call in fake.calls if call[0] in ("init", "create", "update")]
    if name == "wandb":
        assert opened == [("init", "primezero", "run", run, "allow", "0") for run in (None, "abc")]
        assert ("define", "*", "version") in fake.calls
    elif name == "mlflow":
        assert opened == [("create", "experiment primezero", "run"), ("update", "abc", "RUNNING")]
    else:
        assert opened[0] == opened[1]
        assert opened[0][2].startswith("run-")
    assert [call[0] for call in fake.calls].count("terminated" if name == "mlflow" else "finish") == 2


def test_a_service_that_fails_in_the_middle_is_left_alone(tmp_path, fake):
    fake.fails, said = True, []
    record(config(tmp_path, "wandb"), tmp_path, [1, 2], said=said)
    assert len(said) == 1
    assert "no route" in said[0]


def test_a_service_that_does_not_start_ends_the_run_before_it_begins(tmp_path, fake, monkeypatch):
    def refuse(**_):
        raise RuntimeError("not logged in")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ConfigError, match="not logged in"):
        record(config(tmp_path, "wandb"), tmp_path, [])
