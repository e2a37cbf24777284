"""The policy's weights as the sender sees them."""

import pytest
import torch
from plain_policy import CONFIG, PlainPyTorch, assert_same_update, gradients_of, make_policy, weights_of
from random_batches import random_batch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("single_process")


def policy_of(folder, zero_stage, dtype="float32"):
    return make_policy(folder, CONFIG.model_copy(update={"zero_stage": zero_stage}), dtype)


@pytest.fixture(scope="module")
def untied_folder(model_folder, tmp_path_factory):
    """The model with an output head of its own."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(model.lm_head.weight.shape))
    folder = tmp_path_factory.mktemp("untied")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_they_are_the_model_s_parameters_in_layer_order(model_folder, zero_stage):
    policy = policy_of(model_folder, zero_stage)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    saved = load_file(model_folder / "model.safetensors")
    weights = weights_of(policy)
    assert [*weights] == [*policy.weights.shapes] == [name for name, _ in model.named_parameters()]
    assert weights.keys() == saved.keys()
    for name, weight in weights.items():
        assert policy.weights.shapes[name] == weight.shape
        assert torch.equal(weight, saved[name]), name


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_each_pass_gives_what_they_are_then(model_folder, zero_stage):
    policy = policy_of(model_folder, zero_stage)
    source = policy.weights
    before = {name: w.clone() for name, w in source}
    policy.train(random_batch())
    after = {name: w.clone() for name, w in source}
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert all(not w.requires_grad for _, w in source)


def test_under_zero_3_one_is_whole_at_a_time(model_folder):
    policy = policy_of(model_folder, 3)
    parameters = dict(policy._engine.module.causal_lm.named_parameters())
    for name, tensor in policy.weights:
        assert tensor.shape == policy.shapes[name]
        assert [own for own, p in parameters.items() if p.numel()] == [name]
    assert not any(p.numel() for p in parameters.values())
    assert not any(parameter.numel() for parameter in policy._engine.module.parameters())


def test_under_zero_3_no_parameter_stays_whole_between_steps(model_folder):
    policy = policy_of(model_folder, 3)
    for seed in range(4):
        policy.train(random_batch(seed=seed))
        policy.score([1, 2, 3])
        assert not any(parameter.numel() for parameter in policy._engine.module.parameters())


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_head_of_its_own_trains_and_is_saved(untied_folder, tmp_path, zero_stage):
    policy, plain = policy_of(untied_folder, zero_stage), PlainPyTorch(untied_folder)
    batch = random_batch(rows=14, copies=2)
    policy.train(batch)
    plain.train(batch)
    assert "lm_head.weight" in policy.shapes
    assert_same_update(gradients_of(policy), weights_of(policy), plain)
    policy.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(w, saved[name]) for name, w in weights_of(policy).items())
