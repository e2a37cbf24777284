"""The `ipc` transport: weights packed into a CUDA buffer that engines on the same GPU read.

The buffer is exported once. torch counts an export's readers, and vLLM's receiver maps each export once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import torch

from learner.device_memory import ALLOCATOR_SETTINGS
from learner.weight_packing import Packer
from learner.weight_source import WeightSource, check_finite
from learner.weight_transport import SendStats, Settings, Transport, Update, WeightSyncClient
from shared.errors import WeightSyncError
from shared.weight_checksum import checksum
from shared.weight_wire import FORMAT, IpcBuffer, IpcUpdate, PlainInit, check_buffer, parse, to_plain


class IpcTransport(Transport):
    """Fills the buffer chunk by chunk; each `update_weights` returns when its chunk has been read (`Transport`)."""

    point_to_point = True

    def __init__(
        self,
        client: WeightSyncClient,
        source: WeightSource,
        settings: Settings,
        *,
        gpu_uuid: str,
        device: torch.device,
    ) -> None:
        """WeightSyncError when the memory of this process cannot be shared."""
        refuse_expandable_segments(os.environ.get)
        self._client = client
        self._source = source
        self._dtype = settings.dtype
        self._shapes = dict(source.shapes)
        self._packer: Packer | None = Packer(
            self._shapes, settings.dtype, buffer_bytes=settings.buffer_bytes, device=device
        )
        self._buffer = export(self._packer.buffer, gpu_uuid)

    def connect(self) -> None:
        """See `Transport.connect`."""
        self._client.init_weight_transfer_engine(to_plain(PlainInit(FORMAT, "ipc")))

    def begin(self, version: int) -> Callable[[], SendStats]:
        """See `Transport.begin`: the engines have read all chunks."""
        packer = self._packer
        if packer is None:
            raise WeightSyncError("the weight sender is closed")
        update = Update(self._client, version)
        update.write(lambda: check_finite(self._source, self._shapes, self._dtype))
        update.start()
        with closing(packer.pack(self._source)) as packing:
            for index, end in enumerate(packing):
                update.update(self._chunk(packer, version, index, end))
        self.sums = packer.sums()
        return partial(update.finish, packer.nbytes)

    def close(self) -> None:
        """Free the buffer, once the engines have let go of it."""
        if self._packer is not None:
            self._packer = None
            if torch.cuda.is_available():
                torch.cuda.ipc_collect()

    def _chunk(self, packer: Packer, version: int, index: int, end: int) -> dict[str, Any]:
        # Reading the sums waits for the device, and so for the chunk to be whole before the engines look.
        first, second = checksum(packer.buffer[:end]).tolist()
        chunks = packer.chunks
        return to_plain(IpcUpdate(FORMAT, version, index, len(chunks), chunks[index], (first, second), self._buffer))


def export(buffer: torch.Tensor, gpu_uuid: str) -> IpcBuffer:
    """The buffer (uint8 [n], on a GPU) as plain fields; WeightSyncError if it cannot be shared."""
    from torch.multiprocessing import reductions

    _, arguments = reductions.reduce_tensor(buffer)
    (kind, size, stride, offset, storage, dtype, _, handle, nbytes, start, _, counter, count, event, wait) = arguments
    if kind is not torch.Tensor or storage is not torch.storage.TypedStorage or dtype != torch.uint8:
        raise WeightSyncError(f"torch describes the weight buffer as {kind}, {storage}, {dtype}: not as was expected")
    exported = IpcBuffer(
        gpu_uuid=gpu_uuid,
        dtype="uint8",
        size=tuple(size),
        stride=tuple(stride),
        offset=offset,
        memory_handle=handle,
        storage_nbytes=nbytes,
        storage_offset=start,
        ref_counter_handle=counter.decode(),
        ref_counter_offset=count,
        event_handle=event,
        event_sync_required=bool(wait),
    )
    check_buffer(parse(to_plain(exported), IpcBuffer))
    return exported


def refuse_expandable_segments(setting: Callable[[str], str | None]) -> None:
    """WeightSyncError if torch is told to allocate memory in a way that CUDA IPC cannot share."""
    for variable in ALLOCATOR_SETTINGS:
        for option in (setting(variable) or "").split(","):
            name, _, value = option.partition(":")
            if name.strip() == "expandable_segments" and value.strip().lower() != "false":
                raise WeightSyncError(
                    f"{variable} sets {option.strip()}: such memory cannot be shared by CUDA IPC. Take it out, or use "
                    "sync.transport=nccl with engines on another GPU"
                )
