"""Planned activations beside what torch takes from its allocator, forward and backward."""

import pytest
import torch
from allocations import allocations

from launch.plan.activations import pass_memory
from launch.plan.sizes import ModelSizes
from learner.attention import PACKED_ATTENTION, PackedLayout
from learner.packed_model import PackedCausalLM

SEQUENCES = 4
CASES = {
    "tied": {},
    "untied": {"tied": False},
    "many tokens": {"tokens": 2048},
    "few tokens": {"tokens": 256},
    "many layers": {"layers": 6},
    "wide": {"hidden": 512, "heads": 8, "kv_heads": 4, "intermediate": 1536},
    "wide feed-forward": {"intermediate": 2048},
    "norms of heads": {"head_norms": True},
    "logits in chunks": {"vocabulary": 8192, "chunk": 2**24},
    "logits kept": {"vocabulary": 2048, "chunk": 2**24},
    "a shared beginning": {"shared": True},
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_planned_activations_are_what_torch_takes(case, dtype, checkpointing):
    sizes = {"hidden": 256, "intermediate": 1024, "layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": 1024}
    settings = {"tied": True, "head_norms": False, "tokens": 1024, "chunk": 2**18, "shared": False} | CASES[case]
    tokens, chunk = settings.pop("tokens"), settings.pop("chunk")
    layout, positions = packed(tokens, settings.pop("shared"))
    model = ModelSizes(**{**sizes, **settings}, head_width=64, qkv_bias=True)
    planned = pass_memory(
        model,
        tokens=tokens,
        keys=int(layout.key_starts[-1]),
        item=dtype.itemsize,
        checkpointing=checkpointing,
        chunk_bytes=chunk,
        attention_copies=2,  # on the CPU runs of sequences are put together again
    )
    assert planned.total == pytest.approx(measured(model, layout, positions, dtype, checkpointing, chunk), rel=0.06)


def packed(tokens: int, shared: bool) -> tuple[PackedLayout, torch.Tensor]:
    """Sequences of equal length, and their positions. shared: they have half of all tokens in common."""
    begin = tokens // 2 if shared else 0
    length = (tokens - begin) // SEQUENCES
    positions = torch.cat([torch.arange(begin), begin + torch.arange(length).repeat(SEQUENCES)])[None]
    if shared:
        return PackedLayout.of([begin, *[length] * SEQUENCES], [None, *[0] * SEQUENCES]), positions
    return PackedLayout.of([length] * SEQUENCES), positions


def measured(
    model: ModelSizes,
    layout: PackedLayout,
    positions: torch.Tensor,
    dtype: torch.dtype,
    checkpointing: bool,
    chunk: int,
) -> int:
    """The most that a pass takes, gradients of the parameters apart."""
    module = make_module(model, dtype, chunk)
    if checkpointing:
        module.checkpoint_activations()
    tokens = positions.shape[1]
    ids = torch.randint(0, model.vocabulary, (2, tokens))

    def forward() -> torch.Tensor:
        logprobs, entropy = module(ids[:1], positions, layout, torch.arange(tokens), ids[1], temperature=1.0)
        return logprobs.sum() + entropy.sum()

    forward().backward()  # from now on gradients are there, and added to
    with allocations() as ahead:
        loss = forward()
    with allocations() as back:
        loss.backward()
    return max(ahead.peak, ahead.kept + back.peak)


def make_module(model: ModelSizes, dtype: torch.dtype, chunk: int) -> PackedCausalLM:
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

    config = (Qwen3Config if model.head_norms else Qwen2Config)(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_width,
        tie_word_embeddings=model.tied,
    )
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=PACKED_ATTENTION)
    return PackedCausalLM(causal_lm.eval(), chunk_bytes=chunk)
