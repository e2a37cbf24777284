import pytest
import torch

from learner.logprobs import token_logprobs


def plain(hidden, head, targets, temperature):
    log_p = torch.log_softmax((hidden @ head.T).float() / temperature, dim=-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def inputs(dtype=torch.float32, tokens=23, vocabulary=37):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 16, generator=g).to(dtype).requires_grad_()
    head = torch.randn(vocabulary, 16, generator=g).to(dtype).requires_grad_()
    return hidden, head, torch.randint(0, vocabulary, (tokens,), generator=g), torch.randn(2, tokens, generator=g)


def assert_equal_to_the_plain_computation(hidden, head, targets, weights, temperature, chunk_bytes):
    expected = plain(hidden, head, targets, temperature)
    expected_grads = torch.autograd.grad((torch.stack(expected) * weights).sum(), (hidden, head))
    found = token_logprobs(hidden, head, targets, temperature=temperature, chunk_bytes=chunk_bytes)
    found_grads = torch.autograd.grad((torch.stack(found) * weights).sum(), (hidden, head))
    for ours, theirs in zip((*found, *found_grads), (*expected, *expected_grads), strict=True):
        assert (ours - theirs).abs().max() <= 4e-6 * theirs.abs().max()


@pytest.mark.parametrize("chunk_bytes", [1, 700, 3000, 4000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens", [1, 23])
def test_values_and_gradients_equal_the_plain_computation(chunk_bytes, temperature, tokens):
    assert_equal_to_the_plain_computation(*inputs(tokens=tokens), temperature, chunk_bytes)


@pytest.mark.parametrize("tokens", [65, 100])
@pytest.mark.parametrize("vocabulary", [100, 300])
@pytest.mark.parametrize("spare", [-1, 0, 20])
def test_what_just_fits_into_a_chunk_is_one_slice_though_it_is_no_multiple_of_the_alignment(tokens, vocabulary, spare):
    """Of tokens in the forward pass, with room for `spare` more, and of words in the backward pass."""
    assert_equal_to_the_plain_computation(
        *inputs(tokens=tokens, vocabulary=vocabulary), 0.7, 4 * (tokens + spare) * vocabulary
    )


@pytest.mark.parametrize("output", [0, 1], ids=["logprobs", "entropy"])
def test_each_output_alone_has_the_right_gradient(output):
    hidden, head, targets, weights = inputs()
    expected = torch.autograd.grad((plain(hidden, head, targets, 1.0)[output] * weights[0]).sum(), (hidden, head))
    found = token_logprobs(hidden, head, targets, temperature=1.0, chunk_bytes=4 * 37 * 4)[output]
    for ours, theirs in zip(torch.autograd.grad((found * weights[0]).sum(), (hidden, head)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_gives_float32_results_and_bfloat16_gradients():
    hidden, head, targets, weights = inputs(torch.bfloat16)
    expected = plain(hidden, head, targets, 0.7)
    found = token_logprobs(hidden, head, targets, temperature=0.7, chunk_bytes=6 * 37 * 4)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (found[0] * weights[0]).sum().backward()
    assert hidden.grad.dtype == head.grad.dtype == torch.bfloat16


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_logits_that_fit_into_a_chunk_are_made_once():
    """Otherwise once more for the backward pass; every product of the head is counted."""

    def products(chunk_bytes: int) -> int:
        hidden, head, targets, _ = inputs()
        with CountedProducts() as watch:
            token_logprobs(hidden, head, targets, temperature=1.0, chunk_bytes=chunk_bytes)[0].sum().backward()
        return watch.count

    assert products(23 * 37 * 4) == 3
    assert products(23 * 37 * 4 - 4) == 2 + 2 * 3


class CountedProducts(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket is torch.ops.aten.mm
        return func(*args, **(kwargs or {}))


def test_parts_of_the_vocabulary_are_aligned_for_a_gpu_s_matrix_products():
    """Rows of another width than whole multiples of 16 bytes cannot be loaded at once."""
    tokens, vocabulary, dtype = 50, 1003, torch.bfloat16
    hidden = torch.randn(tokens, 8, dtype=dtype, requires_grad=True)
    head = torch.randn(vocabulary, 8, dtype=dtype, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.int64)
    logprobs, _ = token_logprobs(hidden, head, targets, temperature=1.0, chunk_bytes=4 * tokens * 333)
    with OutputWidths() as watch:
        logprobs.sum().backward()
    logits = [width for width in watch.widths if width not in (8, tokens)]
    assert logits == [320, 320, 320, 1003 - 3 * 320]


class OutputWidths(torch.utils._python_dispatch.TorchDispatchMode):
    """Of every matrix product, in order."""

    def __init__(self):
        super().__init__()
        self.widths = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mm:
            self.widths.append(out.shape[1])
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    g = torch.Generator().manual_seed(0)
    tokens, vocabulary, chunk = 400, 512, 16
    hidden = torch.randn(tokens, 8, generator=g).requires_grad_()
    head = torch.randn(vocabulary, 8, generator=g).requires_grad_()
    with LargestTensor() as watch:
        logprobs, entropy = token_logprobs(
            hidden, head, torch.zeros(tokens, dtype=torch.int64), temperature=1.0, chunk_bytes=4 * chunk * vocabulary
        )
        (logprobs.sum() + entropy.sum()).backward()
    assert 0 < watch.elements <= chunk * vocabulary


@pytest.mark.parametrize("vocabulary", [512, 8192])
def test_memory_does_not_follow_the_vocabulary(vocabulary):
    """By the allocator's account: two chunks, what is as long as the tokens, and the head's gradient."""
    tokens, width, chunk_bytes = 256, 8, 2**18
    hidden = torch.randn(tokens, width).requires_grad_()
    head = torch.randn(vocabulary, width).requires_grad_()
    targets = torch.zeros(tokens, dtype=torch.int64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        logprobs, entropy = token_logprobs(hidden, head, targets, temperature=0.9, chunk_bytes=chunk_bytes)
        (logprobs.sum() + entropy.sum()).backward()
    held = most = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    beside_the_head = most - head.nbytes
    assert chunk_bytes < beside_the_head < 2.5 * chunk_bytes


def test_no_tokens_give_zero_gradients():
    hidden = torch.zeros(0, 8, requires_grad=True)
    head = torch.randn(5, 8, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.int64)
    logprobs, entropy = token_logprobs(hidden, head, targets, temperature=1.0, chunk_bytes=64)
    (logprobs.sum() + entropy.sum()).backward()
    assert not head.grad.any()
