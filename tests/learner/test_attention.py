import pytest
import torch
from transformers import AutoModelForCausalLM

import learner.attention
from learner.attention import PACKED_ATTENTION, PackedLayout, packed_attention


def test_layout_joins_neighbours_of_equal_length():
    layout = PackedLayout.of([7, 7, 3, 5, 5, 5, 7])
    assert (layout.counts, layout.lengths) == ((2, 1, 3, 1), (7, 3, 5, 7))
    assert layout.offsets.tolist() == [0, 7, 14, 17, 22, 27, 32, 39]


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


def sequence_by_sequence(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """What `varlen_attn` computes, by its documentation; refuses what its kernels would."""
    assert query.shape[0] == key.shape[0] == value.shape[0]
    assert query.shape[2] == key.shape[2] == value.shape[2]
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert window_size == (-1, 0)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    outputs = []
    for begin, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (x[begin:end].transpose(0, 1).float() for x in (query, key, value))
        k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for x in (k, v))
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        later = torch.ones(end - begin, end - begin).triu(1).bool()
        outputs.append((scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(0, 1).to(query.dtype))
    return torch.cat(outputs)


@pytest.mark.parametrize("lengths", [[9], [9, 9, 9], [9, 5, 5, 3, 1], [1, 6, 2, 6]])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_the_kernel_for_a_gpu_is_asked_for_the_same(monkeypatch, lengths, scaling, key_value_heads):
    g = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, sum(lengths), heads, 8, generator=g).transpose(1, 2).requires_grad_()
        for heads in (4, key_value_heads, key_value_heads)
    )
    weights = torch.randn(1, sum(lengths), 4, 8, generator=g)

    def attend():
        out, _ = packed_attention(
            torch.nn.Module(), query, key, value, None, packed_layout=PackedLayout.of(lengths), scaling=scaling
        )
        return out, *torch.autograd.grad((out * weights).sum(), (query, key, value))

    expected = attend()
    monkeypatch.setattr(learner.attention, "_variable_length", lambda query: True)
    monkeypatch.setattr(learner.attention, "varlen_attn", sequence_by_sequence)
    for ours, theirs in zip(attend(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[700], [300, 300, 90, 5, 1], [1, 60, 2, 60]])
@pytest.mark.parametrize("heads", [(14, 2), (16, 16)])
def test_on_a_gpu_it_equals_the_runs(lengths, heads):
    g = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(1, sum(lengths), n, 64, generator=g, device="cuda", dtype=torch.bfloat16)
        .transpose(1, 2)
        .requires_grad_()
        for n in (heads[0], heads[1], heads[1])
    )
    layout = PackedLayout.of(lengths)
    layout = layout.with_offsets(layout.offsets.cuda())
    found = learner.attention._by_offsets(query, key, value, layout, None)
    double = [x.detach().float().requires_grad_() for x in (query, key, value)]
    expected = learner.attention._by_runs(*double, layout, None)
    weights = torch.randn_like(expected)
    grads = torch.autograd.grad((found * weights).sum(), (query, key, value))
    expected_grads = torch.autograd.grad((expected * weights).sum(), double)
    for ours, theirs in zip((found, *grads), (expected, *expected_grads), strict=True):
        assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()


def test_only_half_precision_on_a_gpu_takes_the_kernel():
    for dtype in (torch.float32, torch.bfloat16):
        assert not learner.attention._variable_length(torch.zeros(1, 2, 3, 8, dtype=dtype))


@pytest.mark.parametrize(
    "options", [{"attention_mask": torch.ones(1)}, {"dropout": 0.1}, {"sliding_window": 4}], ids=lambda o: next(iter(o))
)
def test_what_it_cannot_do_is_refused(options):
    x = torch.zeros(1, 2, 3, 4)
    arguments = {"attention_mask": None, "packed_layout": PackedLayout.of([3])} | options
    with pytest.raises(ValueError, match="packed attention is causal"):
        packed_attention(torch.nn.Module(), x, x, x, **arguments)
