"""The vLLM plugin: receives weights from shared memory inside vLLM's worker process.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). Nothing is imported
from vLLM or torch until then.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rollout import engine_core
from shared.errors import WeightSyncError
from shared.processes import signal_at_parents_death

if TYPE_CHECKING:
    import torch

    from rollout.staging import Target

TRANSPORT = "shm"
WORKER_EXTENSION = "rollout.weight_transfer.WorkerExtension"

_registered = False


def register() -> None:
    """Make the `shm` transfer engine known to vLLM, and tie child processes to their parent's life."""
    global _registered
    if _registered:
        return
    _registered = True
    _die_with_parent()

    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(TRANSPORT, _engine_class())
    engine_core.install()


class WorkerExtension:
    """Methods that vLLM adds to its Worker, callable through `collective_rpc`."""

    weight_transfer_engine: Any
    _weight_update_active: bool

    def primezero_staging(self) -> dict[str, Any]:
        """State of the update being staged: see `Staging.state`."""
        return self.weight_transfer_engine.staging_state()

    def primezero_discard_update(self) -> None:
        """Forget an update that was begun and not finished; vLLM itself has no way to."""
        self.weight_transfer_engine.discard()
        self._weight_update_active = False


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal_at_parents_death(signal.SIGKILL)
    if not parent.is_alive():  # it died before the call above
        os.kill(os.getpid(), signal.SIGKILL)


def _engine_class() -> type:
    from dataclasses import dataclass

    from vllm.config import CompilationMode
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    from rollout.staging import Staging
    from shared.weight_manifest import FORMAT, parse_manifest

    @dataclass
    class ShmInitInfo(WeightTransferInitInfo):
        format: int

    class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, WeightTransferUpdateInfo]):
        """Stages an update on a thread; `finish_weight_update` only moves pointers."""

        init_info_cls = ShmInitInfo
        update_info_cls = WeightTransferUpdateInfo
        supports_draft_weight_update = False
        defers_processing = True

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if self.vllm_config.compilation_config.mode != CompilationMode.NONE:
                raise WeightSyncError("shm weight sync needs enforce_eager: compiled code keeps the old packed weights")
            if self.parallel_config.world_size != 1:
                raise WeightSyncError("shm weight sync supports one worker per engine, not tensor or pipeline parallel")
            self.targets = plan_targets(self.model)
            self._staging: Staging | None = None

        def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
            if init_info.format != FORMAT:
                raise WeightSyncError(f"the learner speaks weight format {init_info.format}, the engine {FORMAT}")

        def start_weight_update(self) -> None:
            self.discard()

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.discard()
            self._staging = Staging(self.targets, parse_manifest(update_info), self.model_config.dtype)

        def finish_weight_update(self) -> None:
            staging, self._staging = self._staging, None
            if staging is None:
                raise WeightSyncError("finish_weight_update came without update_weights")
            staging.commit()

        def staging_state(self) -> dict[str, Any]:
            if self._staging is None:
                raise WeightSyncError("no weight update is being staged")
            return self._staging.state

        def discard(self) -> None:
            if self._staging is not None:
                self._staging.cancel()
                self._staging = None

        def receive_weights(self, update_info: WeightTransferUpdateInfo) -> None:
            raise NotImplementedError("update_weights is overridden")

        def shutdown(self) -> None:
            self.discard()

    return ShmWeightTransferEngine


def plan_targets(model: torch.nn.Module) -> list[Target]:
    """Everything in vLLM's model that has weights, as targets.

    Raises WeightSyncError for a module that has parameters and is of no known kind.
    """
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    from rollout.staging import VectorTarget

    targets: list[Target] = []
    users_of_matrix: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    for path, module in model.named_modules():
        if all(parameter is None for parameter in module._parameters.values()):
            continue
        if isinstance(module, VocabParallelEmbedding):
            users_of_matrix[id(module.weight)].append((path, module))
        elif isinstance(module, LinearBase):
            targets.append(_linear_target(model, path, module))
        elif type(module) is RMSNorm and set(module._parameters) == {"weight"}:
            targets.append(VectorTarget(f"{path}.weight", module.weight))
        else:
            raise WeightSyncError(f"shm weight sync does not know how to refresh {path} ({type(module).__name__})")
    return [_embedding_target(users) for users in users_of_matrix.values()] + targets


def _linear_target(model: torch.nn.Module, path: str, module: Any) -> Target:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    from rollout.staging import LinearTarget

    if not isinstance(module.quant_method, UnquantizedLinearMethod) or not set(module._parameters) <= {
        "weight",
        "bias",
    }:
        raise WeightSyncError(f"shm weight sync does not know how to refresh {path}: it is quantized")
    parent, _, leaf = path.rpartition(".")
    packed_names: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    names = [f"{parent}.{part}" for part in packed_names.get(leaf, [leaf])]
    rows = tuple(getattr(module, "output_sizes", None) or [module.output_size])
    if len(names) != len(rows):
        raise WeightSyncError(f"{path} stacks {len(rows)} matrices, but {len(names)} names are known for it")
    return LinearTarget(
        module=module,
        weights=tuple(f"{name}.weight" for name in names),
        biases=tuple(f"{name}.bias" for name in names) if module.bias is not None else (),
        rows=rows,
        columns=module.input_size,
        pack=_pack_and_drop,
    )


def _embedding_target(users: list[tuple[str, Any]]) -> Target:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

    from rollout.staging import EmbeddingTarget

    path, first = users[0]
    for user_path, module in users:
        parameters = {name for name, parameter in module._parameters.items() if parameter is not None}
        if not isinstance(module.quant_method, UnquantizedEmbeddingMethod) or parameters != {"weight"}:
            raise WeightSyncError(f"shm weight sync cannot refresh {user_path}: it is quantized or has a bias")
    return EmbeddingTarget(
        name=f"{path}.weight",
        weight=first.weight,
        vocabulary=first.org_vocab_size,
        heads=tuple(module for _, module in users if isinstance(module, ParallelLMHead)),
        tables=tuple(module for _, module in users if not isinstance(module, ParallelLMHead)),
        pack=_pack,
    )


def _pack(layer: Any) -> None:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def _pack_and_drop(layer: Any) -> None:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
