"""Sums of weights, on the device that they are on: Fletcher's of packed ones, and of live ones in whatever order.

They are computed by learner and engine alike, which share nothing but this folder, and this folder does not
import torch: the functions work on the methods of the tensors that they are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.weight_wire import Sums

if TYPE_CHECKING:
    import torch

# Prime, so that no weight of a position is lost on a word; and products of two remainders fit 64 bits.
MODULUS = 2**31 - 1
_WORD_BYTES = 4
_COLUMNS = 4096
# To sum as int64, torch on the CPU makes a copy, which should stay in the cache; a GPU takes all rows at once.
_ROWS_ON_CPU = 64
# Words that `content_sums` widens at once: what fits the cache, and 64 MiB.
_WIDENED_ON_CPU = 2**16
_WIDENED = 2**24


def checksum(buffer: torch.Tensor) -> torch.Tensor:
    """Two sums modulo `MODULUS`, int64 [2] on the buffer's device: of the words, and of position × word.

    buffer: uint8 [n], contiguous, n and its place in memory a multiple of 4. Positions count from 1.
    Any one changed word changes the first, unless by a multiple of the modulus; two unequal words in
    each other's place change the second. Nothing waits for the device.
    """
    if buffer.numel() % _WORD_BYTES:
        raise ValueError(f"{buffer.numel()} bytes are not whole words")
    words = buffer.view(buffer[:0].int().dtype)
    count = words.numel()
    on_cpu = buffer.device.type == "cpu"
    step = _COLUMNS * (_ROWS_ON_CPU if on_cpu else max(1, count // _COLUMNS))
    sums = buffer[:0].long().new_zeros(2)
    for start in range(0, count, step):
        part = words[start : start + step]
        whole = part.numel() // _COLUMNS * _COLUMNS
        for piece, first in ((part[:whole].view(-1, _COLUMNS), start), (part[None, whole:], start + whole)):
            if piece.numel():
                sums = (sums + _sums(piece.long() if on_cpu else piece, first)) % MODULUS
    return sums


def _sums(table: torch.Tensor, first: int) -> torch.Tensor:
    """Of the words [rows, columns], the first of which is at position `first` + 1.

    The word in row r and column c is at first + 1 + r × columns + c, so that plain sums of rows and of
    columns are enough, and the table is read but never copied.
    """
    sums = table[:0].long().new_zeros(2)
    rows = table.sum(1, dtype=sums.dtype) % MODULUS
    columns = table.sum(0, dtype=sums.dtype) % MODULUS
    row_positions = (_range(rows) * table.shape[1] + (first + 1)) % MODULUS
    sums[0] = rows.sum()
    sums[1] = (rows * row_positions % MODULUS).sum() + (columns * _range(columns) % MODULUS).sum()
    return sums


def _range(like: torch.Tensor) -> torch.Tensor:
    return like.new_ones(like.shape).cumsum(0) - 1


def content_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Of the tensor's 16-bit words, as integers with a sign: their sum, and that of their squares; int64 [2], exact.

    The order of the elements does not count, and sums of parts add up, so that the weights of fused layers have those
    of the parameters that they are fused of. One changed word changes the first, and many changes that cancel there
    (half of all bfloat16 weights a step up, half a step down) change the second.

    tensor: contiguous, of 2 or 4 bytes an element. Nothing waits for the device.
    """
    flat = tensor.detach().reshape(-1)
    words = flat.view(flat[:0].short().dtype)
    sums = words[:0].long().new_zeros(2)
    if words.device.type == "cpu":
        # In float64, whose sums are the fastest, and exact: squares of as many words come to less than 2**53.
        wide = words[:0].double().new_empty(min(len(words), _WIDENED_ON_CPU))
        for part in words.split(_WIDENED_ON_CPU):
            own = wide[: len(part)].copy_(part)
            sums[0] += int(own.sum())
            sums[1] += int(own.dot(own))
        return sums
    for part in words.split(_WIDENED):
        wide = part.int()
        sums[0] += part.sum(dtype=sums.dtype)
        sums[1] += wide.mul_(wide).sum(dtype=sums.dtype)
    return sums


def total_sums(*tensors: torch.Tensor | None) -> Sums:
    """`content_sums` of all that are there, together; waits for the device."""
    first, second = sum(content_sums(tensor) for tensor in tensors if tensor is not None).tolist()
    return first, second
