"""The `ipc` transport's end in the engine: weights read out of a buffer of the learner's on the same GPU.

torch shares CUDA memory between processes by a tuple with classes in it, which only pickle can carry.
Here the fields travel plain (`IpcBuffer`), are checked, and the tuple is rebuilt with constant classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from rollout.receiving import DTYPES, Batch
from shared.errors import WeightSyncError
from shared.weight_checksum import checksum
from shared.weight_wire import (
    IpcBuffer,
    IpcUpdate,
    PackedParameter,
    PlainInit,
    Shapes,
    check_buffer,
    check_parameters,
    check_sizes,
    padded,
    parse,
)


class IpcReceiver:
    """Reads an update chunk by chunk, one for each `update_weights` (`Receiver`).

    expected: name → shape of everything that the model needs; dtype: what the engine computes in
    rebuild: `rebuild_cuda_tensor`, taking the arguments as one list; the same mapping must serve all
        chunks of one export (vLLM's `PackedBufferImporter.rebuild` does so); release: lets go of it
    """

    def __init__(
        self,
        expected: Shapes,
        dtype: str,
        device: torch.device,
        rebuild: Callable[[list[Any]], torch.Tensor],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._expected = expected
        self._dtype = dtype
        self._device = device
        self._rebuild = rebuild
        self._release = release
        self._before: set[str] = set()
        self._next = (0, -1, -1)

    def join(self, init_info: Mapping[str, Any]) -> None:
        """See `Receiver.join`."""
        if parse(init_info, PlainInit).transport != "ipc":
            raise WeightSyncError("the learner sends weights by another transport than ipc, which the engine reads")

    def begin(self) -> None:
        """See `Receiver.begin`."""
        self._before = set()
        self._next = (0, -1, -1)

    def open(self, update_info: Mapping[str, Any]) -> IpcChunk:
        """The next chunk, checked but for its bytes."""
        update = parse(update_info, IpcUpdate)
        index, version, count = self._next
        if update.index != index or (index and (update.version, update.count) != (version, count)):
            raise WeightSyncError(
                f"chunk {update.index} of {update.count} of weight version {update.version} came where chunk {index} "
                "of an update was due"
            )
        last = update.index + 1 >= update.count
        check_parameters(update.parameters, self._expected, self._dtype, before=self._before, last=last)
        nbytes = padded(check_sizes(update.parameters))
        if nbytes > (capacity := check_buffer(update.buffer)):
            raise WeightSyncError(f"a chunk of {nbytes} bytes of weights does not fit a buffer of {capacity}")
        if update.buffer.gpu_uuid != (ours := self.gpu_uuid()):
            raise WeightSyncError(
                f"the learner's weights are on GPU {update.buffer.gpu_uuid}, the engine is on {ours}: CUDA IPC is for "
                "one GPU, use sync.transport=nccl"
            )
        self._before |= {parameter.name for parameter in update.parameters}
        self._next = (index + 1, update.version, update.count)
        return IpcChunk(update, nbytes, lambda: self._rebuild(rebuild_arguments(update.buffer, self._device)))

    def gpu_uuid(self) -> str:
        """Of the engine's GPU; WeightSyncError if it has none."""
        if self._device.type != "cuda":
            raise WeightSyncError("weights by CUDA IPC need the engine on a GPU; on the CPU use sync.transport=shm")
        return str(torch.cuda.get_device_properties(self._device).uuid)

    def close(self) -> None:
        """Let go of the learner's buffer: as long as it is mapped here, its memory is not free, whoever has ended."""
        self._release()


class IpcChunk:
    """One chunk that lies in the learner's buffer until the call that brought it returns (`Incoming`)."""

    def __init__(self, update: IpcUpdate, nbytes: int, rebuild: Callable[[], torch.Tensor]) -> None:
        self.last = update.index + 1 == update.count
        self._update = update
        self._nbytes = nbytes
        self._rebuild = rebuild

    def __iter__(self) -> Iterator[Batch]:
        """All its parameters at once, in memory of their own: the learner writes the next chunk over this one."""
        content = self._rebuild()[: self._nbytes].clone()
        if tuple(checksum(content).tolist()) != self._update.checksum:
            raise WeightSyncError(
                f"the bytes of chunk {self._update.index} ({self._update.parameters[0].name} and those after it) "
                "do not match their checksum"
            )
        yield unpack(content, self._update.parameters)

    def close(self) -> None:
        """The mapping stays for the next chunk."""


def rebuild_arguments(buffer: IpcBuffer, device: torch.device) -> list[Any]:
    """What torch's `rebuild_cuda_tensor` takes, in its order: our classes and device, the learner's numbers."""
    return [
        torch.Tensor,
        torch.Size(buffer.size),
        buffer.stride,
        buffer.offset,
        torch.storage.TypedStorage,
        DTYPES[buffer.dtype],
        device.index,
        buffer.memory_handle,
        buffer.storage_nbytes,
        buffer.storage_offset,
        False,
        buffer.ref_counter_handle.encode(),
        buffer.ref_counter_offset,
        buffer.event_handle,
        buffer.event_sync_required,
    ]


def unpack(content: torch.Tensor, parameters: Sequence[PackedParameter]) -> Batch:
    """The parameters that lie one after the other in `content` (uint8), as views of it."""
    batch: Batch = []
    offset = 0
    for parameter in parameters:
        piece = content[offset : offset + parameter.nbytes]
        batch.append((parameter.name, piece.view(DTYPES[parameter.dtype]).view(parameter.shape)))
        offset += parameter.nbytes
    return batch
