"""The split of a device, what does not fit, and what would."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.plan.advice import Change, advise, changed
from launch.plan.devices import DEVICES, GIB, Device
from launch.plan.memory_plan import CONTEXT, MemoryPlan, plan_memory
from launch.plan.run_plan import plan_run
from launch.plan.sizes import model_sizes
from launch.plan.table import advice_text, plan_table
from shared.config import Config
from shared.config_file import load_config

A100 = DEVICES["a100-80gb"]
SMALL_A100 = DEVICES["a100-40gb"]
THREE, SEVEN = model_sizes("qwen2.5-3b"), model_sizes("qwen2.5-7b")


def single_a100(**overrides: object) -> Config:
    path = Path(__file__).parents[3] / "launch/configs/single_a100.toml"
    return load_config(path, [f"--{key.replace('__', '.')}={value}" for key, value in overrides.items()])


def parts(plan: MemoryPlan) -> dict[tuple[str, str], int]:
    return {(part.owner, part.name): part.size for part in plan.parts}


def test_3b_fits_on_one_a100_of_80_gb_with_its_optimizer():
    plan = plan_memory(single_a100(), THREE, A100)
    assert plan.fits
    assert not plan.offload
    assert plan.sequences >= 128
    shown = plan_table(plan_run(single_a100(), THREE, A100), THREE, "qwen2.5-3b")
    assert "offloaded" not in shown
    assert f"{plan.sequences} sequences of 1,536 tokens" in shown


def test_parts_and_what_is_free_add_up_to_the_device():
    for config in (single_a100(), single_a100(rollout__workers=2), single_a100(learner__kl_coefficient=0.1)):
        plan = plan_memory(config, model_sizes("qwen2.5-1.5b"), A100)
        assert plan.fits
        whole = plan.of("learner") + plan.engines * plan.of("engine") + plan.spare + plan.free
        assert whole == A100.memory
        shares = plan.learner_share + plan.engines * plan.engine_share
        assert shares <= 1 - CONTEXT / A100.memory


@pytest.mark.parametrize("transport", ["ipc", "nccl"])
@pytest.mark.parametrize(("vocabulary", "chunks"), [(151_936, 2), (151_937, 3)])
def test_chunks_of_an_update_count_where_they_take_more_than_what_generation_has_freed(transport, vocabulary, chunks):
    kind = {"ipc": "colocated", "nccl": "split"}[transport]
    model = replace(THREE, vocabulary=vocabulary)
    for mib in (1024, 4096):
        config = single_a100(sync__buffer_mib=mib, sync__transport=transport, placement__kind=kind)
        plan = plan_memory(config, model, A100, rank=False, engines=1)
        names = {part.name: part for part in plan.parts}
        way, work = names["weights on their way"], names["activations, sampler"]
        assert way.size == chunks * mib * 2**20
        assert way.counted == (way.size > work.size)
        assert work.counted != way.counted


def test_a_share_covers_what_its_process_needs():
    plan = plan_memory(single_a100(), THREE, A100)
    rounding = A100.memory / 1000
    assert plan.engine_share * A100.memory == pytest.approx(plan.of("engine"), abs=rounding)
    assert plan.learner_share * A100.memory >= plan.of("learner") - CONTEXT - rounding


def test_3b_fits_on_40_gb_by_offloading_and_says_so():
    plan = plan_memory(single_a100(), THREE, SMALL_A100)
    assert plan.fits
    assert plan.offload
    assert 18 * THREE.parameters < plan.host < 28 * THREE.parameters
    assert "the optimizer is offloaded" in plan_table(plan_run(single_a100(), THREE, SMALL_A100), THREE, "qwen2.5-3b")
    assert not plan_memory(single_a100(learner__offload_optimizer=False), THREE, SMALL_A100).fits


def test_7b_on_40_gb_is_refused_with_what_would_fit():
    config = single_a100()
    plan = plan_run(config, SEVEN, SMALL_A100)
    assert not plan.fits
    advice = advise(config, SEVEN, SMALL_A100)
    assert advice.changes == ()
    assert advice.devices == ("a100-80gb", "h100-80gb", "h200")
    assert advice.shape == "qwen2.5-3b"
    assert "a100-40gb has 39.4" in advice_text(plan, advice)


@pytest.mark.parametrize(
    "overrides",
    [
        {"learner__activation_checkpointing": False},
        {"learner__max_tokens": 131072, "learner__offload_optimizer": False},
        {"learner__zero_stage": 1, "learner__max_tokens": 65536, "learner__offload_optimizer": False},
        {"rollout__gpu_memory_share": 0.1},
        {"rollout__gpu_cache_gib": 60},
        {"learner__gpu_memory_share": 0.9},
        {"learner__gpu_memory_share": 0.25},
        {"learner__zero_stage": 1, "learner__max_tokens": 65536, "learner__activation_checkpointing": False},
    ],
)
def test_advice_makes_it_fit_and_none_of_it_can_be_left_out(overrides):
    config = single_a100(**overrides)
    assert not plan_memory(config, THREE, A100).fits
    changes = advise(config, THREE, A100).changes
    assert changes
    assert plan_memory(changed(config, changes), THREE, A100).fits
    for left_out in changes:
        rest = [change for change in changes if change is not left_out]
        assert not plan_memory(changed(config, rest), THREE, A100).fits


def test_a_change_is_spelled_as_on_the_command_line():
    assert str(Change("learner.activation_checkpointing", True)) == "--learner.activation_checkpointing true"
    assert str(Change("rollout.gpu_cache_gib", None)) == "--rollout.gpu_cache_gib none"


def test_shares_that_are_given_are_kept_to():
    plan = plan_memory(single_a100(rollout__gpu_memory_share=0.2), THREE, A100)
    assert plan.fits
    assert plan.engine_share == pytest.approx(0.2, abs=0.0011)
    cached = plan_memory(single_a100(rollout__gpu_cache_gib=4), THREE, A100)
    assert cached.fits
    assert cached.cache == 4 * GIB


def test_what_a_rank_keeps_of_freed_memory_ends_at_its_share():
    free = plan_memory(single_a100(), THREE, DEVICES["h200"])
    assert parts(free)["learner", "freed and kept"] > 0
    share = (free.of("learner") - parts(free)["learner", "freed and kept"] - CONTEXT + GIB) / free.device.memory
    held = plan_memory(single_a100(learner__gpu_memory_share=share), THREE, DEVICES["h200"])
    assert held.fits
    assert parts(held)["learner", "freed and kept"] == pytest.approx(GIB, abs=1024)


def test_what_others_have_of_the_device_is_left_to_them():
    alone = plan_memory(single_a100(), THREE, A100)
    beside = plan_memory(single_a100(), THREE, Device("shared", A100.memory, used=4 * GIB))
    assert alone.cache - beside.cache == 4 * GIB


def test_a_cache_is_no_larger_than_the_sequences_that_an_engine_decodes():
    plan = plan_memory(single_a100(rollout__max_sequences=64), THREE, DEVICES["h200"])
    assert plan.sequences == 64
    assert plan.free > 30 * GIB


def test_each_setting_that_saves_memory_does():
    def learner(**overrides: object) -> int:
        here = {"learner__offload_optimizer": False, **overrides}
        return plan_memory(single_a100(**here), THREE, A100).of("learner")

    base = learner()
    assert learner(learner__zero_stage=1) > base
    assert learner(learner__activation_checkpointing=False) > base
    assert learner(learner__max_tokens=32768) > base
    assert learner(learner__kl_coefficient=0.1) - base == 2 * THREE.parameters
    # The embedding has to fit into the buffer anyway.
    assert learner(sync__buffer_mib=512) == base
    assert learner(sync__buffer_mib=1024) - base == 2**30 - 2 * THREE.embedding
    assert learner(learner__offload_optimizer=True) < base - 10 * THREE.parameters
    chunks = {"learner__activation_checkpointing": False, "learner__max_tokens": 2048}
    assert learner(**chunks, learner__logit_chunk_mib=1024) > learner(**chunks)


def test_a_sequence_longer_than_the_token_budget_counts_whole():
    def activations(**overrides: object) -> int:
        return parts(plan_memory(single_a100(**overrides), THREE, A100))["learner", "activations"]

    assert activations(learner__max_tokens=16) == activations(learner__max_tokens=512 + 1024)
