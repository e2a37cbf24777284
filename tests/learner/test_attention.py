import pytest
import torch
from transformers import AutoModelForCausalLM

import learner.attention
from learner.attention import (
    PACKED_ATTENTION,
    PackedLayout,
    Run,
    packed_attention,
    ranges,
    run_attention,
    varlen_attention,
)


def test_layout_joins_neighbours_of_equal_length():
    layout = PackedLayout.of([7, 7, 3, 5, 5, 5, 7])
    assert layout.runs == (Run(2, 7, 7), Run(1, 3, 3), Run(3, 5, 5), Run(1, 7, 7))
    assert layout.key_index is None
    assert layout.longest == (7, 7)


def test_layout_tells_prefixes_of_unequal_length_apart():
    layout = PackedLayout.of([4, 2, 3, 3, 3], [None, None, 0, 0, 1])
    assert layout.runs == (Run(1, 4, 4), Run(1, 2, 2), Run(2, 3, 7), Run(1, 3, 5))
    assert layout.query_starts.tolist() == [0, 4, 6, 9, 12, 15]
    assert layout.key_starts.tolist() == [0, 4, 6, 13, 20, 25]
    assert layout.key_index[13:].tolist() == [0, 1, 2, 3, 9, 10, 11, 4, 5, 12, 13, 14]


def test_ranges():
    assert ranges([5, 0, 9], [2, 3, 0]).tolist() == [5, 6, 0, 1, 2]


def load(folder, implementation):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation, dtype=torch.float32)


@pytest.mark.parametrize("lengths", [[9], [9, 9, 9], [9, 5, 5, 3, 1], [1, 6, 2, 6]])
def test_packed_equals_each_sequence_alone(model_folder, lengths):
    g = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 50, (n,), generator=g) for n in lengths]
    weights = [torch.randn(n, 32, generator=g) for n in lengths]

    alone = load(model_folder, "sdpa")
    outputs = [alone.model(input_ids=ids[None]).last_hidden_state[0] for ids in sequences]
    sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)).backward()

    packed = load(model_folder, PACKED_ATTENTION)
    hidden = packed.model(
        input_ids=torch.cat(sequences)[None],
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        use_cache=False,
        packed_layout=PackedLayout.of(lengths),
    ).last_hidden_state[0]
    (hidden * torch.cat(weights)).sum().backward()

    torch.testing.assert_close(hidden, torch.cat(outputs), rtol=0, atol=1e-5)
    largest = max(p.grad.abs().max() for p in alone.model.parameters())
    for (name, ours), theirs in zip(packed.model.named_parameters(), alone.model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 1e-5 * largest, name


# Three prompts, of which two go on from a template; after each, responses.
PARTS = (7, 6, 4, 5, 5, 5, 2, 1, 3)
PREFIXES = (None, None, 0, 0, 1, 2, 2, 3, 3)


def test_shared_prefixes_equal_each_sequence_alone(model_folder):
    g = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 50, (n,), generator=g) for n in PARTS]
    weights = [torch.randn(n, 32, generator=g) for n in PARTS]
    chains = []
    for own, prefix in enumerate(PREFIXES):
        chains.append([own] if prefix is None else [*chains[prefix], own])

    alone = load(model_folder, "sdpa")
    outputs, loss = [], torch.zeros(())
    for chain, weight in zip(chains, weights, strict=True):
        hidden = alone.model(input_ids=torch.cat([parts[part] for part in chain])[None]).last_hidden_state[0]
        outputs.append(hidden[-len(weight) :])
        loss = loss + (outputs[-1] * weight).sum()
    loss.backward()

    packed = load(model_folder, PACKED_ATTENTION)
    before = [sum(PARTS[part] for part in chain[:-1]) for chain in chains]
    hidden = packed.model(
        input_ids=torch.cat(parts)[None],
        position_ids=torch.cat([start + torch.arange(n) for start, n in zip(before, PARTS, strict=True)])[None],
        use_cache=False,
        packed_layout=PackedLayout.of(PARTS, PREFIXES),
    ).last_hidden_state[0]
    (hidden * torch.cat(weights)).sum().backward()

    torch.testing.assert_close(hidden, torch.cat(outputs), rtol=0, atol=1e-5)
    largest = max(p.grad.abs().max() for p in alone.model.parameters())
    for (name, ours), theirs in zip(packed.model.named_parameters(), alone.model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 1e-5 * largest, name


def test_gradients_of_a_prefix_that_many_go_on_from_are_not_lost_in_16_bits():
    layout = PackedLayout.of([8, *[1] * 999], [None, *[0] * 999])
    exact = random_heads(layout)
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    ones = torch.ones(1, int(layout.query_starts[-1]), 4, 16)
    for heads in (exact, rounded):
        attended = packed_attention(torch.nn.Module(), *heads, None, packed_layout=layout, scaling=0.3)[0]
        (attended.float() * ones).sum().backward()
    expected, found = exact[2].grad[:, :, :8], rounded[2].grad[:, :, :8].float()
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def varlen_by_definition(q, k, v, query_starts, key_starts, most_queries, most_keys, *, scale, window_size, enable_gqa):
    """What `varlen_attn` is documented to do, sequence by sequence; [tokens, heads, d] each."""
    assert window_size == (-1, 0)
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert query_starts.dtype == key_starts.dtype == torch.int32
    outputs = []
    for i in range(len(query_starts) - 1):
        own_q = q[query_starts[i] : query_starts[i + 1]]
        own_k, own_v = (
            x[key_starts[i] : key_starts[i + 1]].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v)
        )
        assert len(own_q) <= most_queries
        assert len(own_k) <= most_keys
        scores = torch.einsum("qhd,khd->hqk", own_q, own_k) * scale
        # Causal, the last query at the last key.
        allowed = torch.arange(len(own_k)) <= torch.arange(len(own_q))[:, None] + len(own_k) - len(own_q)
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, own_v))
    return torch.cat(outputs)


def random_heads(layout, device="cpu", dtype=torch.float32):
    """Query, key and value for a layout: 4 heads, 2 of keys and values, of 16."""
    g = torch.Generator().manual_seed(1)
    tokens = int(layout.query_starts[-1])
    return [torch.randn(1, heads, tokens, 16, generator=g).to(device, dtype).requires_grad_() for heads in (4, 2, 2)]


LAYOUTS = {
    "prefixes": ([4, 2, 3, 3, 3, 1], [None, None, 0, 0, 1, 1]),
    "prefixes of prefixes": (PARTS, PREFIXES),
    "no prefix": ([4, 2, 2, 1], None),
}


@pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
def test_one_kernel_for_all_sequences_does_the_same(monkeypatch, sizes):
    layout = PackedLayout.of(*sizes)
    heads = random_heads(layout)
    expected = packed_attention(torch.nn.Module(), *heads, None, packed_layout=layout, scaling=0.3)[0]
    monkeypatch.setattr(learner.attention, "run_attention", varlen_attention)
    monkeypatch.setattr(learner.attention, "varlen_attn", varlen_by_definition)
    found = packed_attention(torch.nn.Module(), *heads, None, packed_layout=layout, scaling=0.3)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
def test_the_gpu_kernel_agrees_with_single_calls(sizes):
    layout = PackedLayout.of(*sizes).to(torch.device("cuda"))
    heads = random_heads(layout, "cuda", torch.bfloat16)
    found = packed_attention(torch.nn.Module(), *heads, None, packed_layout=layout, scaling=0.3)[0]
    q, k, v = (x[0].float() for x in heads)
    if layout.key_index is not None:
        k, v = k[:, layout.key_index], v[:, layout.key_index]
    expected = run_attention(q, k, v, layout, 0.3, True)[None]
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-2)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found.float() * weights).sum(), heads)
    theirs = torch.autograd.grad((expected * weights).sum(), heads)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.float(), other.float(), rtol=0, atol=5e-2)


@pytest.mark.parametrize(
    "options", [{"attention_mask": torch.ones(1)}, {"dropout": 0.1}, {"sliding_window": 4}], ids=lambda o: next(iter(o))
)
def test_what_it_cannot_do_is_refused(options):
    x = torch.zeros(1, 2, 3, 4)
    arguments = {"attention_mask": None, "packed_layout": PackedLayout.of([3])} | options
    with pytest.raises(ValueError, match="packed attention is causal"):
        packed_attention(torch.nn.Module(), x, x, x, **arguments)
