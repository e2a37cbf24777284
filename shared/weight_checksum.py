"""The checksum of packed weights: Fletcher's two sums over 32-bit words, on the device that the bytes are on.

It is computed by learner and engine alike, which share nothing but this folder, and this folder does not
import torch: the functions work on the methods of the tensors that they are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Prime, so that no weight of a position is lost on a word; and products of two remainders fit 64 bits.
MODULUS = 2**31 - 1
_WORD_BYTES = 4
_COLUMNS = 4096
# To sum as int64, torch on the CPU makes a copy, which should stay in the cache; a GPU takes all rows at once.
_ROWS_ON_CPU = 64


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
