"""The plan beside what a run took of a GPU: nvidia-smi's peaks of both processes, docs/gpu.md says how."""

import pytest

from launch.plan.devices import GIB, Device
from launch.plan.memory_plan import plan_memory
from launch.plan.sizes import model_sizes
from shared.config_file import load_config

H200 = Device("NVIDIA H200", int(140.4 * GIB))
OVERRIDES = {
    "sampling.max_response_tokens": 256,
    "selfplay.proposals_per_task": 8,
    "selfplay.buffer_problems_per_task": 24,
}
MEASURED_MIB = {"learner": 67034, "engine": 16272}


@pytest.mark.parametrize("owner", MEASURED_MIB)
def test_the_peak_of_3b_on_an_h200_was_within_a_tenth_of_the_plan(request, owner):
    path = request.config.rootpath / "launch/configs/single_a100.toml"
    config = load_config(path, [f"--{key}={value}" for key, value in OVERRIDES.items()])
    plan = plan_memory(config, model_sizes("qwen2.5-3b"), H200)
    assert plan.of(owner) == pytest.approx(MEASURED_MIB[owner] * 2**20, rel=0.1)


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
