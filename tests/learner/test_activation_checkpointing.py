import pytest
import torch
from plain_policy import CONFIG, PlainPyTorch, assert_same_update, gradients_of, make_policy, weights_of
from random_batches import random_batch

from learner.packed_model import PackedCausalLM, load_model, packed_logprobs
from learner.packing import plan_step

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_update_is_the_same(model_folder, zero_stage):
    batch = random_batch(rows=14, copies=2)
    config = CONFIG.model_copy(update={"zero_stage": zero_stage, "max_tokens": 40})
    plain, policy = PlainPyTorch(model_folder), make_policy(model_folder, config)
    again = make_policy(model_folder, config.model_copy(update={"activation_checkpointing": True}))
    plain.train(batch)
    policy.train(batch)
    again.train(batch)
    assert_same_update(gradients_of(again), weights_of(again), plain)
    for name, gradient in gradients_of(again).items():
        assert torch.equal(gradient, gradients_of(policy)[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_less_is_kept_for_the_backward_pass(model_folder, dtype):
    [[micro_batch]] = plan_step(random_batch(rows=60), world_size=1, max_tokens=1000, averaging="token").ranks

    def kept(checkpointing: bool) -> int:
        model = PackedCausalLM(load_model(model_folder, dtype), chunk_bytes=2**10)
        if checkpointing:
            model.checkpoint_activations()
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            packed_logprobs(model, micro_batch, 1.0)
        return sum(storages.values())

    assert kept(True) < 0.5 * kept(False)


def test_dropout_stays_off(model_folder):
    model = PackedCausalLM(load_model(model_folder, "float32"), chunk_bytes=2**10)
    model.checkpoint_activations()
    training = {type(module).__name__ for module in model.modules() if module.training}
    assert training - {"PackedCausalLM"} == {"Qwen2DecoderLayer"}
