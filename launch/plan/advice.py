"""What to change when a configuration does not fit its device: keys and values, in the order of what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launch.bench.models import SHAPES
from launch.plan.devices import DEVICES, Device
from launch.plan.run_plan import RunPlan, plan_run
from launch.plan.sizes import model_sizes
from shared.config import Config
from shared.model_sizes import ModelSizes

SMALLEST_CHUNK_MIB = 64


@dataclass(frozen=True, slots=True)
class Change:
    """A configuration key and the value that would help."""

    key: str
    value: bool | int | float | None

    def __str__(self) -> str:
        return f"--{self.key} {str(self.value).lower()}"  # None is spelled none


@dataclass(frozen=True, slots=True)
class Advice:
    """changes: those that make it fit, the fewest; none: nothing does. devices: of the table, where it fits with them,
    or without any; shape: the largest well-known model that fits here, with all of them"""

    changes: tuple[Change, ...]
    devices: tuple[str, ...]
    shape: str | None


def advise(config: Config, model: ModelSizes, device: Device) -> Advice:
    """For a configuration that does not fit."""
    changes = list(_candidates(config))
    if not _plan(config, changes, model, device).fits:
        larger = [name for name, other in DEVICES.items() if _plan(config, changes, model, other).fits]
        return Advice((), tuple(larger), _largest_shape(config, changes, model, device))
    for count in range(1, len(changes) + 1):
        if _plan(config, changes[:count], model, device).fits:
            break
    needed = changes[:count]
    for change in needed[:-1]:
        without = [other for other in needed if other is not change]
        if _plan(config, without, model, device).fits:
            needed = without
    return Advice(tuple(_last_of_each_key(needed)), (), None)


def changed(config: Config, changes: list[Change] | tuple[Change, ...]) -> Config:
    """The configuration with the changes made."""
    for change in changes:
        section, key = change.key.split(".")
        part: Any = getattr(config, section)
        config = config.model_copy(update={section: part.model_copy(update={key: change.value})})
    return config


def _plan(config: Config, changes: list[Change], model: ModelSizes, device: Device) -> RunPlan:
    return plan_run(changed(config, changes), model, device)


def _candidates(config: Config) -> Iterator[Change]:
    """First what costs nothing, then time, then much time."""
    learner, sampling = config.learner, config.sampling
    if config.rollout.gpu_memory_share or config.rollout.gpu_cache_gib or learner.gpu_memory_share:
        for key in ("rollout.gpu_memory_share", "rollout.gpu_cache_gib", "learner.gpu_memory_share"):
            section, name = key.split(".")
            if getattr(getattr(config, section), name) is not None:
                yield Change(key, None)
    if learner.zero_stage == 1 and config.model.dtype == "bfloat16":
        yield Change("learner.zero_stage", 2)
    if learner.logit_chunk_mib > SMALLEST_CHUNK_MIB:
        yield Change("learner.logit_chunk_mib", SMALLEST_CHUNK_MIB)
    if not learner.activation_checkpointing:
        yield Change("learner.activation_checkpointing", True)
    tokens = learner.max_tokens
    while tokens // 2 >= sampling.max_prompt_tokens + sampling.max_response_tokens:
        tokens //= 2
        yield Change("learner.max_tokens", tokens)
    if learner.offload_optimizer is False:
        yield Change("learner.offload_optimizer", True)


def _last_of_each_key(changes: list[Change]) -> list[Change]:
    return list({change.key: change for change in changes}.values())


def _largest_shape(config: Config, changes: list[Change], model: ModelSizes, device: Device) -> str | None:
    fitting = [
        name
        for name in SHAPES
        if (sizes := model_sizes(name)).parameters < model.parameters and _plan(config, changes, sizes, device).fits
    ]
    return max(fitting, key=lambda name: model_sizes(name).parameters, default=None)
