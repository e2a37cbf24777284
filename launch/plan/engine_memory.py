"""What a vLLM engine takes of its device, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.engine_vllm import STEP_TOKENS
from shared.model_sizes import ModelSizes

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """workspace: one step's activations and the sampler's logits; reload: a layer that a weight update writes anew
    before it goes over the live one"""

    weights: int
    workspace: int
    reload: int


def engine_memory(model: ModelSizes, *, item: int, max_sequences: int, longest: int) -> EngineMemory:
    """longest: tokens of a prompt and its response. The workspace is an estimate: no gradients, so that a layer's
    largest tensors are alive once; log-probabilities take float32 logits, sorted out of place."""
    tokens = max(STEP_TOKENS, longest)
    layer = 3 * model.intermediate + 4 * model.hidden + 2 * (model.query_width + model.kv_width)
    logits = max_sequences * model.vocabulary * FLOAT32
    return EngineMemory(
        weights=item * model.parameters,
        workspace=tokens * layer * item + 4 * logits,
        reload=item * max(model.layer, model.embedding),
    )


def block_bytes(model: ModelSizes, *, item: int, block_size: int) -> int:
    """One block of the attention cache: keys and values of `block_size` tokens in every layer."""
    return 2 * block_size * model.kv_width * item * model.layers


def blocks_of(tokens: int, block_size: int) -> int:
    """Blocks that a sequence of so many tokens takes."""
    return -(-tokens // block_size)
