"""What DeepSpeed keeps, added up tensor by tensor, is what is planned: to the byte."""

import os

import pytest
from plain_policy import CONFIG, make_policy
from random_batches import random_batch

from launch.plan.learner_memory import learner_states, pinned_bytes
from launch.processes import free_port
from shared.config import LearnerConfig
from shared.model_sizes import ModelSizes, folder_sizes

# An odd number of parameters, which DeepSpeed pads.
SIZES = {
    "vocab_size": 62,
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 65,
    "head_dim": 12,
}
HALF, WHOLE = ("bfloat16", 2), ("float32", 4)


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("odd")
    Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _single_process():
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


def kept(folder, dtype: str, **changes: object) -> tuple[ModelSizes, dict[str, int]]:
    """Bytes that a policy keeps, by what they are, when a micro-batch's gradients are there and after a step."""
    config = LearnerConfig(**{**CONFIG.model_dump(), "max_tokens": 20, **changes})
    policy = make_policy(folder, config, dtype)
    batch = random_batch(rows=2)
    policy.train(batch)
    found = {}
    micro_batch = policy._own_micro_batches(policy._plan(batch))[0]
    policy._engine.set_gradient_accumulation_boundary(False)
    loss, _ = policy._loss(micro_batch, None)
    policy._engine.backward(loss, scale_wrt_gas=False)
    optimizer = policy._engine.optimizer
    parameters = list(policy._engine.module.parameters())
    masters = [p for group in optimizer.optimizer.param_groups for p in group["params"]]
    found["weights"] = size([p.data for p in parameters])
    found["master"] = size(masters)
    found["moments"] = size([optimizer.optimizer.state[p][name] for p in masters for name in ("exp_avg", "exp_avg_sq")])
    flat = [group.flat_partition for group in getattr(optimizer, "averaged_gradients", {}).values() if group]
    found["gradients"] = size(
        [p.grad for p in parameters if p.grad is not None]
        + [p.grad_accum for p in parameters if getattr(p, "grad_accum", None) is not None]
        + getattr(optimizer, "fp32_groups_gradients_flat", [])
        + flat
    )
    if config.offload_optimizer is True:
        pinned = [
            *masters,
            *(p.grad for p in masters),
            *optimizer.param_buffer_of_bit16_for_cpu_offload_groups,
            optimizer.temp_grad_buffer_for_cpu_offload,
        ]
        assert optimizer.cpu_offload_pin_memory
        found["host"] = found["moments"] + sum(pinned_bytes(size([tensor])) for tensor in pinned)
    return folder_sizes(folder), found


def size(tensors) -> int:
    """Bytes of the storages, shared ones once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize(("dtype", "zero_stage"), [(HALF, 1), (HALF, 2), (WHOLE, 1)])
def test_states_are_planned_to_the_byte(odd_model, dtype, zero_stage):
    model, found = kept(odd_model, dtype[0], zero_stage=zero_stage)
    planned = learner_states(model, item=dtype[1], zero_stage=zero_stage, ranks=1, offload=False)
    assert model.parameters % 2 == 1
    assert {name: getattr(planned, name) for name in found} == found


def test_an_offloaded_optimizer_is_planned_to_the_byte(odd_model):
    model, found = kept(odd_model, "bfloat16", zero_stage=2, offload_optimizer=True)
    planned = learner_states(model, item=2, zero_stage=2, ranks=1, offload=True)
    assert planned.host == found["host"]
    assert planned.weights == found["weights"]
    assert planned.gradients == found["gradients"]
    assert planned.master == planned.moments == 0


@pytest.mark.parametrize(("size", "taken"), [(1, 1), (4096, 4096), (4097, 8192), (12_343_754_752, 2**34)])
def test_what_is_pinned_takes_the_next_power_of_two(size, taken):
    assert pinned_bytes(size) == taken


def test_ranks_share_what_their_stage_splits():
    model = ModelSizes(hidden=8, intermediate=16, layers=1, heads=1, kv_heads=1, head_width=8, vocabulary=10, tied=True)
    for stage, split in {1: ("master", "moments"), 2: ("master", "moments", "gradients")}.items():
        alone, half = (learner_states(model, item=2, zero_stage=stage, ranks=ranks, offload=False) for ranks in (1, 2))
        for name in ("weights", "master", "moments", "gradients"):
            assert getattr(half, name) * (2 if name in split else 1) == pytest.approx(getattr(alone, name), abs=32)
