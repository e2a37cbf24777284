"""The sums of packed and of live weights, against their formulas in plain numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.weight_checksum import MODULUS, checksum, content_sums, total_sums

SIZES = [1, 5, 4095, 4096, 4097, 3 * 4096 + 17, 64 * 4096 + 4096 + 3]


def by_formula(words: np.ndarray) -> list[int]:
    words = words.astype(object)
    return [int(sum(words)) % MODULUS, int(sum((i + 1) * w for i, w in enumerate(words))) % MODULUS]


def random_words(count: int, seed: int = 0) -> np.ndarray:
    words = np.random.default_rng(seed).integers(-(2**31), 2**31, count, dtype=np.int32)
    words[: count // 3] = [-(2**31), 2**31 - 1, -1][seed % 3]  # the extremes, and many of them
    return words


def of(words: np.ndarray) -> list[int]:
    return checksum(torch.from_numpy(words).view(torch.uint8)).tolist()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_is_fletchers_sums(count: int, seed: int) -> None:
    words = random_words(count, seed)
    assert of(words) == by_formula(words)


@given(st.integers(1, 5000), st.integers(0, 31), st.integers(0, 10**6))
def test_a_flipped_bit_is_seen(count: int, bit: int, place: int) -> None:
    words = random_words(count)
    damaged = words.copy()
    damaged.view(np.uint32)[place % count] ^= np.uint32(1 << bit)
    assert of(damaged)[0] != of(words)[0]


@given(st.integers(2, 5000), st.integers(0, 10**6), st.integers(0, 10**6))
def test_swapped_words_are_seen(count: int, i: int, j: int) -> None:
    words = random_words(count, seed=1)
    damaged = words.copy()
    damaged[[i % count, j % count]] = words[[j % count, i % count]]
    assert (of(damaged) != of(words)) == (words[i % count] != words[j % count])


@pytest.mark.parametrize("count", SIZES[1:])
def test_a_missing_tail_is_seen(count: int) -> None:
    words = random_words(count)
    words[-1] = 7
    zeroed = words.copy()
    zeroed[-1] = 0
    assert of(words[:-1]) != of(words) != of(zeroed)


def test_nothing_sums_to_nothing() -> None:
    assert checksum(torch.zeros(0, dtype=torch.uint8)).tolist() == [0, 0]


def test_part_of_a_word_is_no_buffer() -> None:
    with pytest.raises(ValueError, match="whole words"):
        checksum(torch.zeros(6, dtype=torch.uint8))


def random_weights(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def content_by_formula(tensor: torch.Tensor) -> list[int]:
    words = [int(word) for word in tensor.contiguous().view(torch.int16).flatten()]
    return [sum(words), sum(word * word for word in words)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 7, 2**15 + 1, 2**17 + 3])
def test_contents_sums_are_of_words_and_of_their_squares(count: int, dtype: torch.dtype) -> None:
    weights = random_weights(count, dtype=dtype)
    weights[: count // 3] = -0.0  # the largest square
    assert content_sums(weights).tolist() == content_by_formula(weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_contents_sums_are_those_of_fused_and_reordered_weights(dtype: torch.dtype) -> None:
    q, k, bias = random_weights(9, 7, dtype=dtype), random_weights(3, 7, dtype=dtype, seed=1), q_bias(dtype)
    fused = torch.cat([k, q])
    assert total_sums(q, k, None, bias) == total_sums(fused, bias) == total_sums(fused.T.contiguous(), bias)
    assert content_sums(q[:5]).tolist() == content_by_formula(q[:5])
    assert content_sums(torch.tensor(1.5, dtype=dtype)).tolist() == content_by_formula(torch.tensor([1.5], dtype=dtype))


def q_bias(dtype: torch.dtype) -> torch.Tensor:
    return random_weights(9, dtype=dtype, seed=2)


@pytest.mark.parametrize("seed", range(10))
def test_as_many_steps_up_as_down_are_seen(seed: int) -> None:
    words = torch.randperm(2**15 - 2, generator=torch.Generator().manual_seed(seed))[:100].short() + 1
    moved = words + torch.tensor([1, -1], dtype=torch.int16).repeat(50)
    before, after = (content_sums(each.view(torch.bfloat16)) for each in (words, moved))
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_sums_contents_as_the_cpu_does(dtype: torch.dtype) -> None:
    weights = random_weights(2**25 + 5, dtype=dtype)
    assert content_sums(weights.cuda()).tolist() == content_sums(weights).tolist()
