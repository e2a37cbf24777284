"""What a run leaves to the plan is filled in, and what has no room is refused before anything starts."""

import pytest

import launch.train
from launch.plan import resolve
from launch.plan.devices import GIB, Device
from launch.plan.resolve import resolve_memory
from launch.run_folder import open_run_folder
from launch.train import train
from learner.checkpoint import CheckpointStore, TrainerState
from shared.config_file import load_config
from shared.errors import PlanError


def configured(folder, **overrides):
    overrides |= {"model.path": folder, "sampling.max_prompt_tokens": 32, "sampling.max_response_tokens": 32}
    return load_config(None, [f"--{key}={value}" for key, value in overrides.items()])


def host(monkeypatch, gib: float) -> None:
    monkeypatch.setattr(resolve, "available_memory", lambda: int(gib * GIB))


def test_without_a_shared_gpu_nothing_is_split_and_nothing_offloaded(model_folder):
    config, plan = resolve_memory(configured(model_folder), None)
    assert plan is None
    assert config.learner.offload_optimizer is False
    assert config.rollout.gpu_memory_share is config.learner.gpu_memory_share is None
    asked, _ = resolve_memory(configured(model_folder, **{"learner.offload_optimizer": "true"}), None)
    assert asked.learner.offload_optimizer is True


def test_engines_that_this_machine_has_no_room_for_are_refused(model_folder, monkeypatch):
    host(monkeypatch, 7)
    assert resolve_memory(configured(model_folder, **{"rollout.workers": 6}), None)[1] is None
    with pytest.raises(
        PlanError,
        match=r"more than 8\.0 GiB .* 7\.0 are available: 1\.0 for each engine .* fewer roll",
    ):
        resolve_memory(configured(model_folder, **{"rollout.workers": 8}), None)
    with pytest.raises(PlanError, match=r"a smaller rollout\.kv_cache_gib, or a smaller model"):
        resolve_memory(configured(model_folder, **{"rollout.workers": 2, "rollout.kv_cache_gib": 4}), None)
    elsewhere = {"rollout.workers": 64, "placement.kind": "cluster"}
    assert resolve_memory(configured(model_folder, **elsewhere), None)[1] is None


def test_on_a_gpu_every_share_is_filled_in(model_folder):
    config, plan = resolve_memory(configured(model_folder), Device("a GPU", 20 * GIB))
    assert plan.engine is plan.learner
    assert config.learner.offload_optimizer is False
    assert config.learner.gpu_memory_share == plan.learner.learner_share
    assert config.rollout.gpu_memory_share == plan.engine.engine_share
    assert config.rollout.gpu_cache_gib * GIB == plan.engine.cache
    again, _ = resolve_memory(config, Device("a GPU", 20 * GIB))
    assert again.rollout.gpu_cache_gib == config.rollout.gpu_cache_gib


def test_a_host_without_room_for_the_optimizer_is_refused(model_folder, monkeypatch):
    config = configured(model_folder, **{"learner.offload_optimizer": "true"})
    host(monkeypatch, 0.0001)
    with pytest.raises(PlanError, match="of the host's memory"):
        resolve_memory(config, Device("a GPU", 20 * GIB))
    host(monkeypatch, 1)
    assert resolve_memory(config, Device("a GPU", 20 * GIB))[0].learner.offload_optimizer is True


def test_training_refuses_what_has_no_room_on_its_gpu(format_model, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.train, "devices_here", lambda: [Device("a small GPU", GIB)])
    overrides = {"placement.device": "cuda", "run.folder": tmp_path / "runs", "environment.prompts": "short"}
    overrides |= {"model.path": format_model, "sampling.max_prompt_tokens": 64, "sampling.max_response_tokens": 12}
    with pytest.raises(PlanError, match=r"a small GPU has 1\.0"):
        train(load_config(None, [f"--{key}={value}" for key, value in overrides.items()]))
    assert not (tmp_path / "runs").exists()


def test_a_run_that_goes_on_keeps_to_its_optimizer_s_place_and_says_so_where_that_has_no_room(
    format_model, tmp_path, monkeypatch
):
    """Here it would be offloaded, as it was not where the run began: on a larger GPU, or with more of this one free."""
    overrides = {"placement.device": "cuda", "run.folder": tmp_path, "run.name": "mine", "environment.prompts": "short"}
    overrides |= {"model.path": format_model, "sampling.max_prompt_tokens": 64, "sampling.max_response_tokens": 12}
    config = load_config(None, [f"--{key}={value}" for key, value in overrides.items()])
    begun = config.model_copy(update={"learner": config.learner.model_copy(update={"offload_optimizer": False})})
    with open_run_folder(begun) as run:
        store = CheckpointStore(run.path / "checkpoints", keep=2)
        store.commit(store.begin(20), TrainerState(20, {}, {}, {}, {}, {}, 0))
    monkeypatch.setattr(launch.train, "devices_here", lambda: [Device("a GPU", GIB)])
    with pytest.raises(PlanError, match=r"a GPU has 1\.0.* begun with learner\.offload_optimizer=false, and can go on"):
        train(config)
    monkeypatch.setattr(launch.train, "devices_here", lambda: [Device("a GPU", 20 * GIB)])
    monkeypatch.setattr(launch.train, "open_run_folder", lambda config, resume: pytest.fail(str(config.learner)))
    with pytest.raises(pytest.fail.Exception, match="offload_optimizer=False"):
        train(config)
