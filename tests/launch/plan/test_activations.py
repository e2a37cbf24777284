"""Planned activations beside what torch takes from its allocator, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from allocations import allocations

from launch.plan.activations import pass_memory
from learner.attention import PACKED_ATTENTION, PackedLayout
from learner.packed_model import PackedCausalLM
from shared.model_sizes import ModelSizes

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
    # What oneDNN puts aside for itself in bfloat16 depends on the processor.
    rel = 0.06 if dtype == torch.float32 else 0.1
    assert planned.total == pytest.approx(measured(model, layout, positions, dtype, checkpointing, chunk), rel=rel)


WIDE_ATTENTION = ModelSizes(
    hidden=512, intermediate=512, layers=2, heads=16, kv_heads=2, head_width=128, vocabulary=1024, tied=True
)
FLASH = {"item": 2, "checkpointing": True, "chunk_bytes": 2**24}


def test_flash_attention_s_gradients_of_many_keys_are_planned_for():
    few, many = (pass_memory(WIDE_ATTENTION, tokens=4096, keys=keys, **FLASH) for keys in (4096, 8 * 4096))
    # Of each key more: itself and its value, and gradients of them, of its own head's and of every query head's; and
    # what those of its queries are added up in.
    each = 2 * (2 * 2 * WIDE_ATTENTION.kv_width + 2 * WIDE_ATTENTION.query_width) + 4 * WIDE_ATTENTION.query_width
    assert many.total - few.total == 7 * 4096 * each


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointed"])
@pytest.mark.parametrize("stretches", [32, 224])
def test_the_planned_pass_has_room_for_what_a_gpu_takes(stretches, checkpointing):
    begin, own = 128, 16
    layout = PackedLayout.of([begin, *[own] * stretches], [None, *[0] * stretches]).to(torch.device("cuda"))
    positions = torch.cat([torch.arange(begin), begin + torch.arange(own).repeat(stretches)])[None]
    planned = pass_memory(
        WIDE_ATTENTION,
        tokens=positions.shape[1],
        keys=int(layout.key_starts[-1]),
        **(FLASH | {"checkpointing": checkpointing}),
    )
    module = make_module(WIDE_ATTENTION, torch.bfloat16, FLASH["chunk_bytes"]).to("cuda")
    if checkpointing:
        module.checkpoint_activations()
    forward = make_forward(module, WIDE_ATTENTION, layout, positions.to("cuda"))
    forward().backward()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward().backward()
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.7 * planned.total < taken < 1.1 * planned.total


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
    forward = make_forward(module, model, layout, positions)
    forward().backward()  # from now on gradients are there, and added to
    with allocations() as ahead:
        loss = forward()
    with allocations() as back:
        loss.backward()
    return max(ahead.peak, ahead.kept + back.peak)


def make_forward(
    module: PackedCausalLM, model: ModelSizes, layout: PackedLayout, positions: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """A forward pass of random tokens at these positions; every one of them predicts."""
    ids = torch.randint(0, model.vocabulary, (2, positions.shape[1]), device=positions.device)
    words, word_index = ids[0].unique(return_inverse=True)
    predicting = torch.arange(positions.shape[1], device=positions.device)

    def forward() -> torch.Tensor:
        logprobs, entropy = module(words[None], word_index, positions, layout, predicting, ids[1], temperature=1.0)
        return logprobs.sum() + entropy.sum()

    return forward


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
