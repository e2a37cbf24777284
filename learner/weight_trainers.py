"""Our transports as vLLM's trainer-side weight transfer engines: the one module of the learner that knows vLLM.

vLLM is imported when the engines are made: it costs seconds and hundreds of megabytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from learner.weight_broadcast import BroadcastTransport, GlooRoot, MakeRoot
from learner.weight_ipc import IpcTransport
from learner.weight_shm import ShmTransport
from learner.weight_source import WeightSource
from learner.weight_transport import SendStats, Settings, Transport, WeightSyncClient
from shared.errors import WeightSyncError


def make_trainer(transport: str, client: WeightSyncClient, source: WeightSource, settings: Settings) -> Any:
    """A trainer engine of vLLM's with our `transport` in it, made by vLLM's factory."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

    info = _init_infos().get(transport)
    if info is None:
        raise WeightSyncError(f"unknown weight transport {transport!r}: there are {', '.join(_init_infos())}")
    return WeightTransferTrainerFactory.trainer_init(info(settings=settings, rank=0), client=client, source=source)


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


@functools.cache
def _init_infos() -> Mapping[str, Callable[..., Any]]:
    """Transport → class of the init info by which vLLM's factory finds our engine; registers the engines."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    class Sending:
        """What our engines do alike: the transport sends. vLLM's `send_weights` takes no version: set it before."""

        transport: Transport
        version = 0
        stats: SendStats

        @classmethod
        def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> Any:
            make: Any = cls
            return make(client, source, init_info.settings)

        def send_weights(self) -> None:
            self.stats = self.transport.send(self.version)

        def shutdown(self) -> None:
            self.transport.close()

    class ShmTrainer(Sending, TrainerWeightTransferEngine):
        def __init__(self, client: Any, source: Any, settings: Settings) -> None:
            super().__init__(client=client, source=source)
            self.transport = ShmTransport(client, source, settings)

    class IpcTrainer(Sending, IPCTrainerWeightTransferEngine):
        def __init__(self, client: Any, source: Any, settings: Settings) -> None:
            if not torch.cuda.is_available():
                raise WeightSyncError("sync.transport=ipc needs a GPU that learner and engines share: use shm")
            super().__init__(client=client, source=source, packed=True, packed_buffer_size_bytes=settings.buffer_bytes)
            device = torch.device("cuda", self.device_index)
            self.transport = IpcTransport(client, source, settings, gpu_uuid=self.gpu_uuid, device=device)

    class NcclTrainer(Sending, NCCLTrainerWeightTransferEngine):
        def __init__(self, client: Any, source: Any, settings: Settings) -> None:
            super().__init__(client=client, source=source, packed_buffer_size_bytes=settings.buffer_bytes)
            gpu = torch.cuda.is_available()
            device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
            make_root: MakeRoot = NcclRoot if gpu else GlooRoot
            self.transport = BroadcastTransport(client, source, settings, device=device, make_root=make_root)

    infos: dict[str, Callable[..., Any]] = {}
    for transport, engine in {"shm": ShmTrainer, "ipc": IpcTrainer, "nccl": NcclTrainer}.items():
        infos[transport] = _init_info(f"primezero_{transport}", TrainerInitInfo)
        WeightTransferTrainerFactory.register_engine(f"primezero_{transport}", engine)
    return infos


def _init_info(name: str, base: Any) -> Callable[..., Any]:
    @dataclass
    class InitInfo(base):
        backend: ClassVar[str] = name

        settings: Settings

    return InitInfo
