"""Where every GiB of one device goes: of a learner rank, of engines, or of both, which then share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launch.plan.activations import pass_memory
from launch.plan.devices import GIB, Device
from launch.plan.engine_memory import block_bytes, blocks_of, engine_memory
from launch.plan.learner_memory import learner_states
from learner.memory_bounds import KEYS_PER_TOKEN
from shared.config import Config
from shared.model_sizes import ModelSizes

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
# As on an H200: a CUDA context with the kernels and all that libraries take past PyTorch; an engine's graphs, for each
# layer.
CONTEXT = int(1.65 * GIB)
GRAPHS = 5 * 2**20
# What the allocator loses to fragments, of what comes and goes: with a tenth of it 3B ran out of memory on an H200.
FRAGMENTS = 0.3
# Assumed, not measured: NCCL's buffers; and what stays free for the driver.
NCCL_BUFFERS = GIB // 4
SPARE = 0.01
# Of an update in place: the chunk that is received, and one of which vLLM keeps a part while a layer lacks the rest.
CHUNKS_ON_THE_WAY = 2
# vLLM makes a vocabulary a multiple of it, and keeps the chunk with the embedding to the end where that has changed it.
VOCABULARY_STEP = 64
# With fewer sequences at a time an engine reads its weights for little.
FEWEST_SEQUENCES = 32


@dataclass(frozen=True, slots=True)
class Part:
    """counted: False for what another part takes the place of, since the two are never alive together"""

    owner: Literal["learner", "engine"]
    name: str
    size: int
    detail: str = ""
    counted: bool = True


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The parts, of a rank if there is one, and of one engine if there are any: all engines on the device are alike.

    cache: bytes of an engine's attention cache, which is the last of its parts; fewest: what it must be at least;
    sequences: how many of the longest it holds; host: bytes in the host's memory, beside what torch and vLLM take
    there; sampled, longest: sequences of a step, and their length at most; fits: that all is there
    """

    device: Device
    parts: tuple[Part, ...]
    engines: int
    offload: bool
    cache: int
    fewest: int
    sequences: int
    host: int
    sampled: int
    longest: int
    learner_limit: int

    def of(self, owner: str) -> int:
        """Bytes of one owner, counted as they are alive together."""
        return sum(part.size for part in self.parts if part.owner == owner and part.counted)

    @property
    def needed(self) -> int:
        """With the smallest cache that will do."""
        return self.of("learner") + self.engines * (self.of("engine") - self.cache + self.fewest) + self.spare

    @property
    def spare(self) -> int:
        return int(SPARE * self.device.memory) + self.device.used

    @property
    def free(self) -> int:
        """What nobody takes; below 0 where it does not fit."""
        return self.device.memory - self.spare - self.of("learner") - self.engines * self.of("engine")

    @property
    def fits(self) -> bool:
        enough = self.engines == 0 or self.cache >= self.fewest
        return self.free >= 0 and enough and self.of("learner") <= self.learner_limit

    @property
    def engine_share(self) -> float:
        """Of the device: everything of an engine's process."""
        return _share(self.of("engine"), self.device)

    @property
    def learner_share(self) -> float:
        """Of the device, for torch's per-process fraction, which the context is outside of; all that engines leave."""
        rest = self.device.memory - self.spare - self.engines * self.of("engine") - CONTEXT
        return _share(min(rest, self.learner_limit - CONTEXT), self.device)


def plan_memory(
    config: Config,
    model: ModelSizes,
    device: Device,
    *,
    offload: bool | None = None,
    rank: bool = True,
    engines: int | None = None,
) -> MemoryPlan:
    """Split the device: the learner gets what it needs, the engines' caches the rest, as far as it is of use.

    offload: instead of what the configuration says, under which `auto` is: only where it does not fit otherwise
    rank: whether a learner rank is on it; engines: how many are; None: all workers'
    """
    wanted = config.learner.offload_optimizer
    if offload is None and wanted == "auto" and rank:
        plain = plan_memory(config, model, device, offload=False, engines=engines)
        if plain.fits or config.learner.zero_stage not in (1, 2):
            return plain
        return plan_memory(config, model, device, offload=True, engines=engines)
    offload = bool(wanted) and rank if offload is None else offload
    engines = config.rollout.workers if engines is None else engines

    learner, host = _learner_parts(config, model, offload) if rank else ([], 0)
    engine = _engine_parts(config, model) if engines else []
    taken = sum(part.size for part in learner if part.counted)
    fixed = sum(part.size for part in engine if part.counted)
    left = device.memory - int(SPARE * device.memory) - device.used - taken - engines * fixed
    cache = max(0, _cache(config, model, device, fixed, left // engines, engines, rank)) if engines else 0
    longest = config.sampling.max_prompt_tokens + config.sampling.max_response_tokens
    sequence = _sequence_bytes(config, model)
    sequences = cache // sequence
    limit = config.learner.gpu_memory_share if rank else None
    learner_limit = device.memory if limit is None else int(limit * device.memory) + CONTEXT
    if rank:
        learner.append(_kept(learner, min(left - engines * cache, learner_limit - taken)))
    if engines:
        engine.append(Part("engine", "attention cache", cache, _held(sequences, longest)))
    return MemoryPlan(
        device=device,
        parts=(*learner, *engine),
        engines=engines,
        offload=offload,
        cache=cache,
        fewest=min(FEWEST_SEQUENCES, config.rollout.max_sequences) * sequence if engines else 0,
        sequences=sequences,
        host=host,
        sampled=_sampled(config),
        longest=longest,
        learner_limit=learner_limit,
    )


def micro_batch_tokens(config: Config) -> int:
    """Of the largest micro-batch: a sequence that is longer than the budget is its own."""
    return max(config.learner.max_tokens, config.sampling.max_prompt_tokens + config.sampling.max_response_tokens)


def _learner_parts(config: Config, model: ModelSizes, offload: bool) -> tuple[list[Part], int]:
    """The parts on the device, and the bytes in the host's memory."""
    learner, item = config.learner, ITEM_BYTES[config.model.dtype]
    states = learner_states(model, item=item, zero_stage=learner.zero_stage, ranks=learner.ranks, offload=offload)
    memory = pass_memory(
        model,
        tokens=micro_batch_tokens(config),
        keys=KEYS_PER_TOKEN * micro_batch_tokens(config),
        item=item,
        checkpointing=learner.activation_checkpointing,
        chunk_bytes=int(learner.logit_chunk_mib * 2**20),
    )
    passing = [
        Part("learner", "activations", memory.saved, _activations(config)),
        Part("learner", "one layer's gradients" if memory.logits == 0 else "logits", memory.working),
        Part("learner", "output head's gradient", memory.head_gradient),
        Part("learner", "gradients on their way, buckets", states.on_the_way),
    ]
    # When activations are gone. What is alive at most counts; which it is depends on the model.
    phases = [
        passing,
        [Part("learner", "embedding's gradient", states.embedding_gradient)],
        [Part("learner", "optimizer step", states.stepping)],
    ]
    fullest = max(phases, key=_size)
    transient = [part if phase is fullest else _uncounted(part) for phase in phases for part in phase]
    elsewhere = "in the host's memory" if offload else ""
    parts = [
        Part("learner", "weights", states.weights, config.model.dtype),
        Part("learner", "master copy of the weights", states.master, elsewhere or "float32"),
        Part("learner", "AdamW's moments", states.moments, elsewhere or "float32"),
        Part("learner", "gradients", states.gradients, f"ZeRO-{learner.zero_stage}"),
        *transient,
    ]
    if learner.kl_coefficient > 0:
        parts.append(Part("learner", "reference model", item * model.parameters))
    parts += [
        Part("learner", "transfer buffer", _transfer_buffer(config, model), "sync.buffer_mib"),
        Part("learner", "fragments", int(FRAGMENTS * _size(fullest)), "assumed"),
        Part("learner", "CUDA context", CONTEXT),
        *([Part("learner", "NCCL's buffers", NCCL_BUFFERS, "assumed")] if config.transport == "nccl" else []),
    ]
    return parts, states.host


def _engine_parts(config: Config, model: ModelSizes) -> list[Part]:
    """All but the cache."""
    memory = engine_memory(
        model,
        item=ITEM_BYTES[config.model.dtype],
        max_sequences=config.rollout.max_sequences,
        longest=config.sampling.max_prompt_tokens + config.sampling.max_response_tokens,
    )
    chunks = CHUNKS_ON_THE_WAY + (model.vocabulary % VOCABULARY_STEP > 0)
    # Generation stands still during an update, and what it has freed is there for it.
    phases = [
        Part("engine", "activations, sampler", memory.workspace, "estimated"),
        Part("engine", "weights on their way", chunks * _transfer_buffer(config, model), f"{chunks} x sync.buffer_mib"),
    ]
    fullest = max(phases, key=lambda part: part.size)
    parts = [
        Part("engine", "weights", memory.weights, config.model.dtype),
        *(part if part is fullest else _uncounted(part) for part in phases),
        Part("engine", "a layer being updated", memory.reload),
        Part("engine", "CUDA context", CONTEXT),
    ]
    if config.rollout.cuda_graphs:
        parts.append(Part("engine", "CUDA graphs", GRAPHS * model.layers))
    if config.transport == "nccl":
        parts.append(Part("engine", "NCCL's buffers", NCCL_BUFFERS, "assumed"))
    return parts


def _transfer_buffer(config: Config, model: ModelSizes) -> int:
    """Bytes: as configured, but the largest parameter has to fit in."""
    return max(config.sync.buffer_mib * 2**20, ITEM_BYTES[config.model.dtype] * model.largest_parameter)


def _cache(config: Config, model: ModelSizes, device: Device, fixed: int, left: int, engines: int, rank: bool) -> int:
    """Bytes for an engine's cache: as configured; what its share leaves; or what is left, as far as it is of use."""
    if config.rollout.gpu_cache_gib is not None:
        return int(config.rollout.gpu_cache_gib * GIB)
    if config.rollout.gpu_memory_share is not None:
        return int(config.rollout.gpu_memory_share * device.memory) - fixed
    if rank and (limit := config.learner.gpu_memory_share) is not None:
        rest = device.memory - int(SPARE * device.memory) - device.used - CONTEXT - int(limit * device.memory)
        left = min(left, rest // engines - fixed)
    return min(left, config.rollout.max_sequences * _sequence_bytes(config, model))


def _sequence_bytes(config: Config, model: ModelSizes) -> int:
    """What the longest sequence takes of the cache."""
    longest = config.sampling.max_prompt_tokens + config.sampling.max_response_tokens
    block = block_bytes(model, item=ITEM_BYTES[config.model.dtype], block_size=config.rollout.block_size)
    return blocks_of(longest, config.rollout.block_size) * block


def _sampled(config: Config) -> int:
    """Sequences of one batch, on all workers together."""
    play = config.selfplay
    attempts = play.attempts + (play.solver_samples == "separate")
    each = play.proposals_per_task * (1 + attempts) + play.buffer_problems_per_task * attempts
    return len(config.environment.tasks) * each


def _activations(config: Config) -> str:
    saved = "checkpointed" if config.learner.activation_checkpointing else "all kept"
    return f"{micro_batch_tokens(config):,} tokens, {saved}"


def _held(sequences: int, longest: int) -> str:
    return f"{sequences} sequences of {longest:,} tokens"


def _uncounted(part: Part) -> Part:
    return Part(part.owner, part.name, part.size, part.detail or "in their place", counted=False)


def _size(parts: Sequence[Part]) -> int:
    return sum(part.size for part in parts)


def _kept(learner: Sequence[Part], left: int) -> Part:
    """What one phase frees, PyTorch keeps in the pieces that it had, which the larger ones of the next do not fit into;
    at the rank's share it gives them back."""
    return Part(
        "learner", "freed and kept", max(0, min(left, _size([p for p in learner if not p.counted]))), "as there is room"
    )


def _share(size: int, device: Device) -> float:
    # Down, so that shares never add up to more than there is; three digits are 80 MB of 80 GB.
    return max(0, size * 1000 // device.memory) / 1000
