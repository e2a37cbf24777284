"""The plan beside what a run took of a GPU: nvidia-smi's peaks of both processes, docs/gpu.md says how."""

import pytest

from launch.plan.devices import GIB, Device
from launch.plan.memory_plan import MemoryPlan, plan_memory
from launch.plan.sizes import model_sizes
from shared.config_file import load_config

H200 = Device("NVIDIA H200", int(140.4 * GIB))
OVERRIDES = {
    "sampling.max_response_tokens": 256,
    "selfplay.proposals_per_task": 8,
    "selfplay.buffer_problems_per_task": 24,
}
MEASURED_MIB = {"learner": 67034, "engine": 16272}
# A cache of 9.89 GiB for 1,536 tokens a sequence.
ENGINE_OF_LONG_ANSWERS_GIB = 19.61
# Where a rank ran out of memory that was allowed 58.58 GiB for its tensors: allocated, asked for, in fragments.
ALLOCATED_GIB, WANTED_GIB, FRAGMENTS_GIB, OUTSIDE_GIB = 57.34, 0.32, 0.98, 1.65


def planned(request, overrides: dict[str, object]) -> MemoryPlan:
    path = request.config.rootpath / "launch/configs/single_a100.toml"
    overrides = {"learner.max_tokens": 16384, **overrides}
    config = load_config(path, [f"--{key}={value}" for key, value in overrides.items()])
    return plan_memory(config, model_sizes("qwen2.5-3b"), H200)


@pytest.mark.parametrize("owner", MEASURED_MIB)
def test_the_peak_of_3b_on_an_h200_was_within_a_tenth_of_the_plan(request, owner):
    assert planned(request, OVERRIDES).of(owner) == pytest.approx(MEASURED_MIB[owner] * 2**20, rel=0.1)


def test_so_was_that_of_an_engine_with_longer_answers(request):
    engine = planned(request, {"rollout.gpu_cache_gib": 9.89}).of("engine")
    assert engine == pytest.approx(ENGINE_OF_LONG_ANSWERS_GIB * GIB, rel=0.1)


def test_a_rank_has_more_room_than_where_one_ran_out_of_memory(request):
    plan = planned(request, {})
    size = {part.name: part.size / GIB for part in plan.parts if part.owner == "learner" and part.counted}
    tensors = sum(size.values()) - sum(size[name] for name in ("fragments", "CUDA context", "freed and kept"))
    assert tensors >= ALLOCATED_GIB + WANTED_GIB
    assert size["fragments"] > FRAGMENTS_GIB + WANTED_GIB
    assert size["CUDA context"] == pytest.approx(OUTSIDE_GIB, rel=0.01)


def test_what_is_kept_for_itself_takes_nothing_from_the_cache(request):
    config = load_config(request.config.rootpath / "launch/configs/single_a100.toml", [])
    model = model_sizes("qwen2.5-3b")
    kept = {}
    for gib in (79.1, 90.0, 139.7):
        plan = plan_memory(config, model, Device("a card", int(gib * GIB)))
        kept[gib] = next(part.size for part in plan.parts if part.name == "freed and kept")
        most = config.rollout.max_sequences
        assert plan.sequences == most or not kept[gib]
    assert kept[79.1] == 0 < kept[139.7]
