"""What vLLM's model is made of, as targets of staging; and loading weights over its live ones."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from rollout.receiving import Batch, Ledger
from rollout.staging import EmbeddingTarget, LinearTarget, Target, VectorTarget
from shared.errors import WeightSyncError
from shared.weight_wire import Shapes


class InPlaceWeights:
    """New weights loaded over the live ones by vLLM's layerwise reload (`PendingWeights`).

    The engine must be paused from the first `take` to `commit`. There is no way back: once begun, the
    model is a mixture until an update has gone through.
    """

    def __init__(self, model: torch.nn.Module, model_config: Any, expected: Shapes) -> None:
        self._model = model
        self._model_config = model_config
        self._ledger = Ledger(expected)
        self._begun = False

    def take(self, batch: Batch) -> None:
        """Load these; vLLM works each layer in when it is whole."""
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        for name, tensor in batch:
            self._ledger.enter(name, tensor)
        if not self._begun:
            self._begun = True
            initialize_layerwise_reload(self._model)
        with disable_mtp_completeness_check():
            self._model.load_weights(batch)

    def check_complete(self) -> None:
        """See `PendingWeights.check_complete`."""
        self._ledger.check_complete()

    def commit(self) -> None:
        """Let vLLM put the last pieces in place."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        self.check_complete()
        finalize_layerwise_reload(self._model, self._model_config)
        self._begun = False
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def discard(self) -> None:
        """Leave vLLM ready for another update: what waits for the rest of its layer must not be mixed with that."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        if not self._begun:
            return
        self._begun = False
        for layer in self._model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                info.loaded_weights.clear()
                info.load_numel = 0
        finalize_layerwise_reload(self._model, self._model_config)


def plan_targets(model: torch.nn.Module) -> list[Target]:
    """Everything in vLLM's model that has weights, as targets.

    Raises WeightSyncError for a module that has parameters and is of no known kind.
    """
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

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
            targets.append(VectorTarget(f"{path}.weight", module))
        else:
            raise WeightSyncError(f"weight sync does not know how to refresh {path} ({type(module).__name__})")
    return [_embedding_target(users) for users in users_of_matrix.values()] + targets


def _linear_target(model: torch.nn.Module, path: str, module: Any) -> Target:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    if not isinstance(module.quant_method, UnquantizedLinearMethod) or not set(module._parameters) <= {
        "weight",
        "bias",
    }:
        raise WeightSyncError(f"weight sync does not know how to refresh {path}: it is quantized")
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

    path, first = users[0]
    for user_path, module in users:
        parameters = {name for name, parameter in module._parameters.items() if parameter is not None}
        if not isinstance(module.quant_method, UnquantizedEmbeddingMethod) or parameters != {"weight"}:
            raise WeightSyncError(f"weight sync cannot refresh {user_path}: it is quantized or has a bias")
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
