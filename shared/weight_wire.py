"""What travels with a weight update, by transport: plain typed fields, checked before anything is done with them.

`shm` carries a `Manifest` (shared/weight_manifest.py). `ipc` and `nccl` carry parameters packed one
after the other, without gaps, into chunks of bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec

from shared.errors import WeightSyncError

FORMAT: Literal[1] = 1

Shapes = Mapping[str, tuple[int, ...]]
DtypeName = Literal["float32", "bfloat16"]
ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}

# What a broadcast chunk ends in: version, number of the chunk, and the two sums of its checksum, as int64.
TRAILER_BYTES = 32
WORD_BYTES = 8

Size = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]
Version = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Shape = Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)]
_Sum = Annotated[int, msgspec.Meta(ge=0, lt=2**31 - 1)]
_Count = Annotated[int, msgspec.Meta(ge=1, lt=2**20)]
_Token = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]

# torch writes its own version, the kind of memory ("c": cudaMalloc), and CUDA's 64 bytes.
MEMORY_HANDLE_BYTES = 66
_CUDA_MALLOC = ord("c")
# Counters in one of torch's files of them: an index past the end would have torch write elsewhere.
_REF_COUNTERS = 10_000


# `content_sums` of some weights.
_Word = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Sums = tuple[_Word, _Word]


class LiveWeights(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an engine computes with in one place of its model: the parameters `names`, fused.

    sums: of each copy that it has of them; None where a copy is not what the last update made
    """

    names: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)]
    sums: Annotated[tuple[Sums | None, ...], msgspec.Meta(min_length=1, max_length=64)]


class PackedParameter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One parameter of a chunk, behind those before it: `nbytes` bytes, `shape` elements of `dtype`."""

    name: Name
    dtype: DtypeName
    shape: Shape
    nbytes: Size


Chunk = Annotated[tuple[PackedParameter, ...], msgspec.Meta(min_length=1, max_length=2**16)]


class PlainInit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The handshake of `shm` and `ipc`, which need nothing else."""

    format: Literal[1]
    transport: Literal["shm", "ipc"]


class BroadcastInit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The handshake of `nccl`: which group to join, and how.

    kind: gloo meets at address and port, nccl by unique_id (128 bytes; otherwise empty)
    rank_offset: rank of the engine's first worker; the learner is rank 0
    timeout_s: limit for joining, and for each broadcast
    """

    format: Literal[1]
    transport: Literal["nccl"]
    group: _Token
    kind: Literal["gloo", "nccl"]
    address: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_.:-]{1,255}\Z")]
    port: Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
    unique_id: Annotated[bytes, msgspec.Meta(max_length=128)]
    rank_offset: _Count
    world_size: Annotated[int, msgspec.Meta(ge=2, lt=2**20)]
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class BroadcastUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`update_weights` of `nccl`: the chunks that rank 0 of `group` now broadcasts, in order.

    A chunk is its parameters' bytes, zeros up to a multiple of 8, and a trailer (`TRAILER_BYTES`).
    """

    format: Literal[1]
    version: Version
    group: _Token
    chunks: Annotated[tuple[Chunk, ...], msgspec.Meta(min_length=1, max_length=2**16)]


class IpcBuffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CUDA buffer of another process, as torch's `reduce_tensor` describes it, without its classes.

    size, stride, offset: of the tensor in its storage, in elements of `dtype`
    storage_nbytes, storage_offset: of the storage in the CUDA allocation, in bytes
    ref_counter_handle: name of torch's shared-memory file of counters
    """

    gpu_uuid: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
    dtype: Literal["uint8"]
    size: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=1)]
    stride: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=1)]
    offset: Size
    memory_handle: Annotated[bytes, msgspec.Meta(min_length=MEMORY_HANDLE_BYTES, max_length=MEMORY_HANDLE_BYTES)]
    storage_nbytes: Size
    storage_offset: Size
    ref_counter_handle: Annotated[str, msgspec.Meta(pattern=r"^/torch_[0-9]{1,20}_[0-9]{1,20}_[0-9]{1,20}\Z")]
    ref_counter_offset: Annotated[int, msgspec.Meta(ge=0, lt=_REF_COUNTERS)]
    event_handle: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    event_sync_required: bool


class IpcUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `update_weights` of `ipc`: chunk `index` of `count`, which now lies at the start of `buffer`."""

    format: Literal[1]
    version: Version
    index: Annotated[int, msgspec.Meta(ge=0, lt=2**20)]
    count: _Count
    parameters: Chunk
    checksum: tuple[_Sum, _Sum]
    buffer: IpcBuffer


T = TypeVar("T", bound=msgspec.Struct)


def parse(info: Mapping[str, Any], kind: type[T]) -> T:
    """`info` as a `kind`; WeightSyncError if a field is missing, foreign or out of range."""
    if isinstance(info, dict) and info.get("format", FORMAT) != FORMAT:
        raise WeightSyncError(f"the learner speaks weight format {info['format']}, the engine {FORMAT}")
    try:
        return msgspec.convert(info, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise WeightSyncError(f"the weight update is malformed: {error}") from error


def to_plain(message: msgspec.Struct) -> dict[str, Any]:
    """The fields as numbers, strings, bytes, lists: what `parse` reads, and every encoding carries."""
    plain: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes,))
    return plain


class _Parameter(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def check_parameters(
    parameters: Sequence[_Parameter], expected: Shapes, dtype: str, *, before: Collection[str] = (), last: bool = True
) -> None:
    """Raise WeightSyncError unless these are parameters that the engine's model needs, each once.

    expected: name → shape of everything that the model needs; dtype: what the engine computes in
    before: names that earlier parts of the same update brought; last: nothing comes after these, else something has to
    """
    names = [parameter.name for parameter in parameters]
    known = {*before, *names}
    if len(known) != len(before) + len(names):
        raise WeightSyncError("the weight update names a parameter twice")
    if last and (missing := expected.keys() - known):
        raise WeightSyncError(f"the weight update lacks {len(missing)} parameters, such as {min(missing)!r}")
    if not last and expected.keys() <= known:
        raise WeightSyncError("the weight update is to go on, and has all parameters that the engine's model needs")
    if foreign := known - expected.keys():
        raise WeightSyncError(
            f"the weight update has {len(foreign)} parameters that the engine's model has not, such as {min(foreign)!r}"
        )
    for parameter in parameters:
        shape = tuple(expected[parameter.name])
        if parameter.shape != shape:
            raise WeightSyncError(f"{parameter.name} has shape {parameter.shape}, the engine's has {shape}")
        if parameter.dtype != dtype:
            raise WeightSyncError(f"{parameter.name} is {parameter.dtype}, the engine computes in {dtype}")


def check_sizes(parameters: Sequence[PackedParameter]) -> int:
    """Bytes of a chunk; WeightSyncError unless each parameter's are what its shape says."""
    for parameter in parameters:
        if parameter.nbytes != nbytes_of(parameter.shape, parameter.dtype):
            raise WeightSyncError(f"{parameter.name} is not {parameter.nbytes} bytes long in its shape")
    return sum(parameter.nbytes for parameter in parameters)


def check_buffer(buffer: IpcBuffer) -> int:
    """Bytes of the buffer; WeightSyncError unless it is one plain piece within its storage."""
    (size,), (stride,) = buffer.size, buffer.stride
    if stride != 1 or buffer.offset + size > buffer.storage_nbytes:
        raise WeightSyncError("the weight buffer reaches past the end of its memory")
    if buffer.memory_handle[1] != _CUDA_MALLOC:
        raise WeightSyncError(
            "the weight buffer lies in memory that CUDA IPC cannot share: unset expandable_segments in "
            "PYTORCH_CUDA_ALLOC_CONF on the learner"
        )
    return size


def plan_chunks(shapes: Shapes, dtype: DtypeName, capacity: int) -> tuple[tuple[PackedParameter, ...], ...]:
    """All parameters in order, in as few chunks of at most `capacity` bytes as that order allows.

    A parameter larger than that is a chunk of its own.
    """
    chunks: list[tuple[PackedParameter, ...]] = []
    chunk: list[PackedParameter] = []
    filled = 0
    for name, shape in shapes.items():
        nbytes = nbytes_of(shape, dtype)
        if chunk and filled + nbytes > capacity:
            chunks.append(tuple(chunk))
            chunk, filled = [], 0
        chunk.append(PackedParameter(name, dtype, tuple(shape), nbytes))
        filled += nbytes
    return (*chunks, tuple(chunk)) if chunk else tuple(chunks)


def nbytes_of(shape: Iterable[int], dtype: str) -> int:
    """Bytes of `shape` elements of `dtype`."""
    nbytes = ITEM_BYTES[dtype]
    for size in shape:
        nbytes *= size
    return nbytes


def padded(nbytes: int) -> int:
    """`nbytes`, rounded up to whole 8-byte words."""
    return -(-nbytes // WORD_BYTES) * WORD_BYTES
