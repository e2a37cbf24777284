"""The checksum of packed weights, against its formula in plain numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.weight_checksum import MODULUS, checksum

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
