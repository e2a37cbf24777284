"""What a safetensors file says it holds, and whether all of it is there: its header alone is read.

The format: eight bytes, the header's length, little-endian; the header, JSON; the tensors' bytes, without gaps
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from shared.errors import ModelFolderError

# The library's own limit.
_MAX_HEADER_BYTES = 100_000_000
_PART_BYTES = 2**22
_LFS_POINTER = b"version https://git-lfs"
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_Size = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class StoredTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor. data_offsets: its first byte and the one after its last, counted from the end of the header."""

    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]

    @property
    def elements(self) -> int:
        """How many numbers it is made of."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors in a file by name; ModelFolderError unless it is whole, and as long as its header says."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                raise ModelFolderError(
                    f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull` in that folder"
                )
            length = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise ModelFolderError(f"{path} is not a safetensors file, or is damaged: download it again")
            if 8 + length > size:
                raise ModelFolderError(f"{path} ends within its header, after {size} bytes: finish the download")
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error
    tensors = _parse(path, header)
    promised = 8 + length + _end_of(path, tensors)
    if promised != size:
        what = "finish the download" if size < promised else "download it again"
        raise ModelFolderError(f"{path} has {size} bytes, and {promised} by its own header: {what}")
    return tensors


def tensor_bytes(path: Path, tensor: StoredTensor) -> Iterator[bytes]:
    """A tensor of a file that `read_header` has passed, in parts of one size."""
    begin, end = tensor.data_offsets
    try:
        with path.open("rb") as file:
            start = 8 + struct.unpack("<Q", file.read(8))[0] + begin
            file.seek(start)
            for at in range(begin, end, _PART_BYTES):
                yield file.read(min(_PART_BYTES, end - at))
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error


def _parse(path: Path, header: bytes) -> dict[str, StoredTensor]:
    try:
        content = msgspec.convert(json.loads(header), dict[str, Any])
        content.pop("__metadata__", None)
        return msgspec.convert(content, dict[str, StoredTensor])
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise ModelFolderError(f"{path} has a header that cannot be read ({error}): download it again") from error


def _end_of(path: Path, tensors: dict[str, StoredTensor]) -> int:
    """Where the last tensor ends; each begins where the one before it ends, and is as long as its shape says."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, after = tensor.data_offsets
        if tensor.dtype not in _ITEM_BYTES:
            raise ModelFolderError(f"{path} holds {name} as {tensor.dtype}, which is not trained on: use other weights")
        if begin != end or after - begin != tensor.elements * _ITEM_BYTES[tensor.dtype]:
            raise ModelFolderError(f"{path} is damaged: {name} is not where its header says; download it again")
        end = after
    return end
