"""A step's tensors are all on the policy's device, and FlashAttention is given what its kernels take."""

from types import SimpleNamespace

import pytest
import torch
from other_device import ELSEWHERE, OtherDevice, is_elsewhere
from plain_policy import CONFIG, PASSES, TEMPERATURE
from random_batches import VOCABULARY, random_batch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

import learner.attention
import learner.packing
from learner.attention import PACKED_ATTENTION
from learner.packed_model import PackedCausalLM
from learner.policy import Policy
from learner.reference import ReferenceModel

BATCHES = {
    "alone": random_batch(rows=6, copies=2),
    "shared prompts": random_batch(rows=6, copies=2, responses=(1, 3)),
    "prefixes of prefixes": random_batch(rows=10, copies=2, responses=(1, 3), template=40),
}


@pytest.fixture
def elsewhere(monkeypatch):
    device = OtherDevice()
    monkeypatch.setattr(FakeTensor, "is_cuda", property(is_elsewhere), raising=False)
    for module in (learner.attention, learner.packing):
        monkeypatch.setattr(module, "to_device", device.moved)
    return device


def make_model(kind=Qwen2Config, *, tied=True, chunk_bytes=2000):
    config = kind(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        tie_word_embeddings=tied,
    )
    with ELSEWHERE:
        causal_lm = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=PACKED_ATTENTION
        ).eval()
    return PackedCausalLM(causal_lm, chunk_bytes)


class PlainEngine(SimpleNamespace):
    """DeepSpeed's engine, as far as a step's passes ask for it."""

    def __call__(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, is_boundary):
        pass

    def backward(self, loss, *, scale_wrt_gas):
        loss.backward()


def make_policy(config):
    """Of whose life there are only the passes."""
    policy = object.__new__(Policy)
    policy._beat, policy._config, policy._temperature = lambda: None, config, TEMPERATURE
    policy._last_entropy, policy._rank, policy._world_size, policy._device = 1.0, 0, 1, ELSEWHERE
    policy._engine, policy._reference = PlainEngine(), None
    return policy


def passes(policy, plan):
    """Both kinds of passes of an optimizer step, forwards and backwards."""
    step = policy._own_micro_batches(plan)
    old = [policy._frozen_logprobs(micro_batch) for micro_batch in step]
    return policy._accumulate_gradients(step, old) + policy._accumulate_gradients(step, [None] * len(step))


@pytest.mark.parametrize(
    "planted",
    [
        lambda x: x + torch.ones(3),
        lambda x: x.index_add_(0, torch.zeros(3, dtype=torch.int64), x.clone()),
        lambda x: torch.cat([x, torch.zeros(1)]),
        lambda x: torch.where(torch.zeros(3, dtype=torch.bool), x, x),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
    ],
)
def test_tensors_of_two_devices_and_reads_are_refused(elsewhere, planted):
    with elsewhere, pytest.raises(RuntimeError):
        planted(torch.zeros(3, device=ELSEWHERE))


def test_an_index_of_the_host_is_found(elsewhere):
    with elsewhere:
        torch.zeros(3, device=ELSEWHERE)[torch.zeros(1, dtype=torch.int64)]
    assert elsewhere.strays == ["aten.index.Tensor"]


@pytest.mark.parametrize("changes", PASSES, ids=str)
def test_forward_loss_and_backward_stay_on_the_device(elsewhere, changes):
    policy = make_policy(CONFIG.model_copy(update=changes))
    plan = policy._plan(BATCHES["prefixes of prefixes"])
    with elsewhere:
        model = policy._engine.module = make_model()
        if policy._config.activation_checkpointing:
            model.checkpoint_activations()
        if policy._config.kl_coefficient > 0:
            policy._reference = object.__new__(ReferenceModel)
            policy._reference._model = make_model().requires_grad_(False)
        sums = passes(policy, plan)
    assert elsewhere.strays == []
    assert {parameter.grad.device for parameter in model.parameters()} == {ELSEWHERE}
    assert all(getattr(each, name).device == ELSEWHERE for each in sums for name in each.__dataclass_fields__)


@pytest.mark.parametrize(
    ("batch", "kind", "tied"),
    [
        ("alone", Qwen2Config, True),
        ("shared prompts", Qwen2Config, True),
        ("prefixes of prefixes", Qwen2Config, False),
        ("prefixes of prefixes", Qwen3Config, True),
        ("prefixes of prefixes", LlamaConfig, True),
    ],
)
def test_the_kernel_is_given_what_it_takes(elsewhere, monkeypatch, batch, kind, tied):
    calls = []

    def checked(q, k, v, query_starts, key_starts, most_queries, most_keys, **options):
        for heads, starts in ((q, query_starts), (k, key_starts), (v, key_starts)):
            assert heads.device == starts.device == ELSEWHERE
            assert heads.dtype == torch.bfloat16
            assert heads.stride(-1) == 1
            assert starts.dtype == torch.int32
            assert starts.is_contiguous()
        assert type(most_queries) is type(most_keys) is int
        assert len(q) >= most_queries
        assert len(k) == len(v) >= most_keys
        calls.append(options["window_size"])
        return varlen_attn(q, k, v, query_starts, key_starts, most_queries, most_keys, **options)

    monkeypatch.setattr(learner.attention, "varlen_attn", checked)
    policy = make_policy(CONFIG.model_copy(update={"max_tokens": 60}))
    plan = policy._plan(BATCHES[batch])
    with elsewhere:
        model = policy._engine.module = make_model(kind, tied=tied, chunk_bytes=10**6)
        passes(policy, plan)
    assert calls == [(-1, 0)] * (3 * len(plan.ranks[0]))
    assert elsewhere.strays == []
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())
