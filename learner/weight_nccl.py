"""Rank 0 of an NCCL group: the one module of the learner that knows vLLM, whose binding of NCCL the engines use too.

vLLM is imported when a group is made: it costs seconds and hundreds of megabytes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from shared.errors import WeightSyncError


class NcclRoot:
    """Rank 0 of an NCCL group that stands apart from the learner's own. Waiting in it can be ended by nothing.

    NCCL chooses where it listens: NCCL_SOCKET_IFNAME names the interface.
    """

    kind: Literal["gloo", "nccl"] = "nccl"
    port = 0

    def __init__(self, token: str, address: str, timeout_s: float) -> None:
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        self.unique_id = bytes(NCCLLibrary().ncclGetUniqueId().internal)
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._group: Any = None

    def join(self, world_size: int) -> None:
        """See `Root.join`."""
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.utils.nccl import unpinned_nccl_env

        with unpinned_nccl_env():
            self._group = PyNcclCommunicator.from_unique_id_bytes(self.unique_id, 0, world_size, self._device)
        if self._group.disabled:
            raise WeightSyncError("VLLM_DISABLE_PYNCCL is set: unset it, or use sync.transport=ipc")

    def broadcast(self, buffer: torch.Tensor) -> None:
        """See `Root.broadcast`."""
        stream = torch.cuda.current_stream(self._device)
        self._group.broadcast(buffer, src=0, stream=stream)
        stream.synchronize()

    def close(self) -> None:
        """Abort what is under way."""
        if self._group is not None:
            self._group.destroy()
