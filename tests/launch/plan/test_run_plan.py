"""The plans of placements with more GPUs than one."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.plan.advice import advise, changed
from launch.plan.devices import DEVICES
from launch.plan.memory_plan import NCCL_BUFFERS
from launch.plan.run_plan import plan_run
from launch.plan.sizes import model_sizes
from launch.plan.table import advice_text, plan_data, plan_table
from shared.config import Config
from shared.config_file import load_config

CONFIGS = Path(__file__).parents[3] / "launch/configs"
A100, SMALL_A100 = DEVICES["a100-80gb"], DEVICES["a100-40gb"]
THREE, SEVEN = model_sizes("qwen2.5-3b"), model_sizes("qwen2.5-7b")


def configured(name: str, **overrides: object) -> Config:
    words = [f"--{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return load_config(CONFIGS / f"{name}.toml", words)


def test_a_second_gpu_leaves_each_side_one_of_its_own():
    alone = plan_run(configured("single_a100", learner__max_tokens=16384), THREE, A100)
    split = plan_run(configured("second_gpu", rollout__max_sequences=256), THREE, A100)
    assert alone.fits
    assert split.fits
    assert [(device.title, device.count) for device in split.devices] == [("each engine", 1), ("each learner rank", 1)]
    assert split.engine.of("learner") == 0
    assert split.learner.engines == 0
    assert split.learner.cache == 0
    assert split.engine.sequences == 256 > alone.engine.sequences
    # On top of what it takes beside an engine: NCCL's own.
    [kept] = [part.size for part in split.learner.parts if part.name == "freed and kept"]
    assert split.learner.of("learner") - kept == alone.learner.of("learner") + NCCL_BUFFERS
    assert split.learner.learner_share > 0.95


def test_ranks_split_what_stage_2_splits():
    one, three = (plan_run(configured("second_gpu", learner__ranks=n), THREE, A100) for n in (1, 3))
    states = 12 * THREE.parameters + 4 * THREE.parameters
    assert one.learner.of("learner") - three.learner.of("learner") == pytest.approx(states * 2 / 3, rel=0.01)
    assert [device.count for device in three.devices] == [1, 3]


def test_further_ranks_beside_a_colocated_one_have_a_gpu_each():
    plan = plan_run(configured("single_a100", learner__ranks=3), THREE, A100)
    assert [device.count for device in plan.devices] == [1, 2]
    assert plan.learner is plan.engine
    assert plan.devices[1].memory.engines == 0
    shown = plan_table(plan, THREE, "qwen2.5-3b")
    assert "on 3 GPUs, each a100-80gb" in shown
    assert "GPU of the first rank, and the engines beside it" in shown
    assert "GPU of each further rank (2 such)" in shown


def test_every_kind_of_gpu_is_shown_and_written():
    plan = plan_run(configured("cluster"), THREE, A100)
    shown = plan_table(plan, THREE, "qwen2.5-3b")
    assert "on 8 GPUs" in shown
    assert shown.index("GPU of each engine (4 such)") < shown.index("GPU of each learner rank (4 such)")
    data = plan_data(plan, THREE, "qwen2.5-3b", None)
    assert [device["count"] for device in data["devices"]] == [4, 4]
    owners = [{part["owner"] for part in device["parts"]} for device in data["devices"]]
    assert owners == [{"engine"}, {"learner"}]


def test_every_rank_s_offloaded_optimizer_counts_in_the_host():
    plan = plan_run(configured("second_gpu", learner__ranks=2, learner__offload_optimizer=True), THREE, A100)
    assert plan.host == 2 * plan.learner.host
    assert f"{plan.host / 2**30:.1f} GiB in the host's memory" in plan_table(plan, THREE, "qwen2.5-3b")


def test_what_fits_on_no_gpu_together_fits_apart():
    # 3B with its optimizer on the GPU: too much beside an engine on 40 GB, and on a GPU of its own once it is split.
    kept = {"learner__offload_optimizer": False, "learner__max_tokens": 8192}
    assert not plan_run(configured("single_a100", **kept), THREE, SMALL_A100).fits
    assert plan_run(configured("second_gpu", learner__ranks=2, **kept), THREE, SMALL_A100).fits


def test_advice_makes_every_gpu_fit():
    config = configured("second_gpu", learner__max_tokens=262144, learner__offload_optimizer=False)
    plan = plan_run(config, THREE, A100)
    assert plan.engine.fits
    assert not plan.fits
    advice = advise(config, THREE, A100)
    assert advice.changes
    assert plan_run(changed(config, advice.changes), THREE, A100).fits
    assert "are needed and a100-80gb has" in advice_text(plan, advice)


def test_an_engine_without_room_for_its_cache_is_the_reason():
    config = configured("second_gpu", rollout__gpu_cache_gib=0.1)
    plan = plan_run(config, THREE, A100)
    assert plan.learner.fits
    assert not plan.engine.fits
    assert "the engine's cache would have 0.1 GiB" in advice_text(plan, advise(config, THREE, A100))


def test_7b_fits_where_four_ranks_share_its_optimizer():
    plan = plan_run(configured("cluster", learner__offload_optimizer=False), SEVEN, A100)
    assert plan.fits
    assert not plan.learner.offload
    assert plan_run(configured("second_gpu"), SEVEN, A100).learner.offload
