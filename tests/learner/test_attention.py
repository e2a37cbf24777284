import pytest
import torch
from transformers import AutoModelForCausalLM

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


@pytest.mark.parametrize(
    "options", [{"attention_mask": torch.ones(1)}, {"dropout": 0.1}, {"sliding_window": 4}], ids=lambda o: next(iter(o))
)
def test_what_it_cannot_do_is_refused(options):
    x = torch.zeros(1, 2, 3, 4)
    arguments = {"attention_mask": None, "packed_layout": PackedLayout.of([3])} | options
    with pytest.raises(ValueError, match="packed attention is causal"):
        packed_attention(torch.nn.Module(), x, x, x, **arguments)
