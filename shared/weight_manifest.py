"""What travels with a weight update through shared memory: where the bytes lie, and what they should be."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from shared.weight_wire import DtypeName, Name, Shape, Size, Version


class WireParameter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One parameter in the segment: `shape` elements of `dtype` from byte `offset`, with their CRC-32."""

    name: Name
    dtype: DtypeName
    shape: Shape
    offset: Size
    crc32: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `update_weights` carries: where the weights lie, and what they should be.

    nbytes: exact size of the segment file
    version: the weight version that these bytes are
    """

    format: Literal[1]
    path: Annotated[str, msgspec.Meta(pattern=r"^/dev/shm/primezero-[0-9]+-[0-9a-f]{32}\Z")]
    nbytes: Size
    version: Version
    parameters: tuple[WireParameter, ...]
