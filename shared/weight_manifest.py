"""What travels with a weight update through shared memory: where the bytes lie, and what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from shared.errors import WeightSyncError

FORMAT: Literal[1] = 1

_Size = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]


class WireParameter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One parameter in the segment: `shape` elements of `dtype` from byte `offset`, with their CRC-32."""

    name: str
    dtype: Literal["float32", "bfloat16"]
    shape: tuple[_Size, ...]
    offset: _Size
    crc32: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `update_weights` carries: where the weights lie, and what they should be.

    nbytes: exact size of the segment file
    version: the weight version that these bytes are
    """

    format: Literal[1]
    path: Annotated[str, msgspec.Meta(pattern=r"^/dev/shm/primezero-[0-9]+-[0-9a-f]{32}\Z")]
    nbytes: _Size
    version: Annotated[int, msgspec.Meta(ge=0)]
    parameters: tuple[WireParameter, ...]


def parse_manifest(update_info: Mapping[str, Any]) -> Manifest:
    """The typed manifest; WeightSyncError if a field is missing, foreign or out of range."""
    try:
        return msgspec.convert(update_info, Manifest)
    except msgspec.ValidationError as error:
        raise WeightSyncError(f"the weight update is malformed: {error}") from error
