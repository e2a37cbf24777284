"""The vLLM plugin: receives weights in the process of vLLM's that has the model, which is EngineCore's.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). Nothing is imported
from vLLM or torch until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rollout import engine_core, engine_failure, fork_server
from shared.errors import WeightSyncError

if TYPE_CHECKING:
    import torch

    from rollout.receiving import PendingWeights, Receiver, Receiving
    from rollout.staging import Target
    from shared.weight_wire import BroadcastInit, Shapes

# What vLLM knows our transports as; "ipc" and "nccl" are its own.
BACKENDS: Mapping[str, str] = {"shm": "primezero_shm", "ipc": "primezero_ipc", "nccl": "primezero_nccl"}
WORKER_EXTENSION = "rollout.weight_transfer.WorkerExtension"

_registered = False


def register() -> None:
    """Make our transfer engines known to vLLM, and tie child processes to their parent's life."""
    global _registered
    if _registered:
        return
    _registered = True
    fork_server.end_with_starter()

    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for transport, engine in engine_classes().items():
        WeightTransferEngineFactory.register_engine(BACKENDS[transport], engine)
    engine_core.install()
    engine_failure.report()


class WorkerExtension:
    """Methods that vLLM adds to its Worker, callable through `collective_rpc`."""

    weight_transfer_engine: Any
    _weight_update_active: bool

    def primezero_staging(self) -> dict[str, Any]:
        """State of the update being received: see `Receiving.state`."""
        return self.weight_transfer_engine.staging_state()

    def primezero_live_weights(self) -> list[Any]:
        """What the model computes with, as plain fields of `LiveWeights`."""
        return self.weight_transfer_engine.live_weights()

    def primezero_discard_update(self) -> None:
        """Forget an update that was begun and not finished; vLLM itself has no way to."""
        self.weight_transfer_engine.discard()
        self._weight_update_active = False

    def primezero_forget_learner(self) -> None:
        """Let go of all that was a learner's, which has left: see `EngineSide.forget_learner`."""
        self.weight_transfer_engine.forget_learner()
        self._weight_update_active = False


class EngineSide:
    """The engine's end of a weight update, whatever brings the weights and however they become live.

    A mixin before one of vLLM's `WeightTransferEngine` classes. On the CPU the new weights are received
    and staged on a thread while the engine goes on, and `finish_weight_update` only moves pointers; on a
    GPU they are loaded over the live ones in the calls themselves, with the engine paused from
    `start_weight_update` to `finish_weight_update`.
    """

    device: torch.device
    model: torch.nn.Module
    model_config: Any
    parallel_config: Any
    vllm_config: Any
    supports_draft_weight_update = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from vllm.config import CompilationMode

        from rollout.model_weights import plan_targets
        from rollout.staging import shapes_of

        if self.parallel_config.world_size != 1:
            raise WeightSyncError("weight sync supports one worker per engine, not tensor or pipeline parallel")
        self.in_place = self.device.type != "cpu"
        if not self.in_place and self.vllm_config.compilation_config.mode != CompilationMode.NONE:
            raise WeightSyncError("weight sync needs enforce_eager: compiled code keeps the old packed weights")
        self.defers_processing = not self.in_place
        self.targets: list[Target] = plan_targets(self.model)
        # Of the whole model, whatever updates are applied to.
        self._places = tuple(self.targets)
        dtype = str(self.model_config.dtype).removeprefix("torch.")
        self.receiver: Receiver = self.make_receiver(shapes_of(self.targets), dtype)
        self._pending: PendingWeights | None = None
        self._receiving: Receiving | None = None

    def make_receiver(self, expected: Shapes, dtype: str) -> Receiver:
        raise NotImplementedError

    def parse_init_info(self, init_dict: dict[str, Any]) -> dict[str, Any]:
        """Left to the receiver."""
        return init_dict

    def init_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The handshake."""
        self.discard()
        self.receiver.join(init_info)

    def start_weight_update(self) -> None:
        """Begin anew."""
        from rollout.model_weights import InPlaceWeights
        from rollout.staging import StagedWeights, shapes_of

        self.discard()
        self.receiver.begin()
        if self.in_place:
            self._pending = InPlaceWeights(self.model, self.model_config, shapes_of(self.targets))
        else:
            self._pending = StagedWeights(self.targets)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Check what this part of the update says of itself, and take it in: staged, only begin to."""
        from rollout.receiving import Receiving

        if self._pending is None:
            raise WeightSyncError("update_weights came without start_weight_update")
        if self._receiving is not None:
            self._receiving.check()
        self._receiving = Receiving(self.receiver.open(update_info), self._pending)
        if self.in_place:
            self._receiving.run()
        else:
            self._receiving.start()

    def finish_weight_update(self) -> None:
        """Make the new weights live; WeightSyncError unless all have come as they should."""
        receiving, self._receiving = self._receiving, None
        pending, self._pending = self._pending, None
        if receiving is None or pending is None:
            raise WeightSyncError("finish_weight_update came without update_weights")
        receiving.check()
        pending.commit()

    def staging_state(self) -> dict[str, Any]:
        """See `Receiving.state`."""
        if self._receiving is None:
            raise WeightSyncError("no weight update is being received")
        return self._receiving.state

    def live_weights(self) -> list[Any]:
        """See `WorkerExtension.primezero_live_weights`."""
        return [[list(place.shapes), place.live()] for place in self._places]

    def discard(self) -> None:
        """Forget an update that is not finished."""
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        if self._pending is not None:
            self._pending.discard()
            self._pending = None

    def forget_learner(self) -> None:
        """Forget what it was sending, and let go of its buffer, or leave its group, until another is there."""
        self.discard()
        self.receiver.close()

    def receive_weights(self, update_info: Any) -> None:
        raise NotImplementedError("update_weights is overridden")

    def shutdown(self) -> None:
        self.discard()
        self.receiver.close()
        super().shutdown()  # type: ignore[misc]


class NcclPeer:
    """A member of an NCCL group that stands apart from vLLM's own. Waiting in it can be ended by nothing."""

    def __init__(self, init: BroadcastInit, device: torch.device) -> None:
        """Meet the others where the unique id says; blocks until all are there."""
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.utils.nccl import unpinned_nccl_env

        with unpinned_nccl_env():
            self._group = PyNcclCommunicator.from_unique_id_bytes(
                init.unique_id, init.rank_offset, init.world_size, device
            )
        if self._group.disabled:
            raise WeightSyncError("VLLM_DISABLE_PYNCCL is set: unset it, or use sync.transport=ipc")

    def receive(self, buffer: torch.Tensor) -> None:
        """Rank 0's next broadcast."""
        import torch

        stream = torch.cuda.current_stream(buffer.device)
        self._group.broadcast(buffer, src=0, stream=stream)
        stream.synchronize()

    def close(self) -> None:
        """Abort what is under way."""
        self._group.destroy()


def engine_classes() -> dict[str, type]:
    """Transport → our subclass of vLLM's weight transfer engine."""
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    from rollout.segment import SegmentReceiver
    from rollout.weight_broadcast import BroadcastReceiver, GlooPeer
    from rollout.weight_ipc import IpcReceiver

    class ShmEngine(EngineSide, WeightTransferEngine):
        def make_receiver(self, expected: Shapes, dtype: str) -> Receiver:
            if self.in_place:
                raise WeightSyncError("sync.transport=shm is for engines on the CPU: use ipc or nccl")
            return SegmentReceiver(expected, dtype)

        def shutdown(self) -> None:
            self.discard()

    class IpcEngine(EngineSide, IPCWeightTransferEngine):
        def make_receiver(self, expected: Shapes, dtype: str) -> Receiver:
            importer = self._packed_importer
            return IpcReceiver(expected, dtype, self.device, importer.rebuild, importer.close)

    class NcclEngine(EngineSide, NCCLWeightTransferEngine):
        def make_receiver(self, expected: Shapes, dtype: str) -> Receiver:
            joins: dict[str, Any] = {"gloo": GlooPeer}
            if self.device.type == "cuda":
                joins["nccl"] = lambda init: NcclPeer(init, self.device)
            return BroadcastReceiver(expected, dtype, self.device, joins)

    return {"shm": ShmEngine, "ipc": IpcEngine, "nccl": NcclEngine}
