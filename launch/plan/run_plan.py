"""The plans of all GPUs of a run, by what its placement puts on them."""

from __future__ import annotations

from dataclasses import dataclass

from launch.plan.devices import Device
from launch.plan.memory_plan import MemoryPlan, plan_memory
from shared.config import Config
from shared.model_sizes import ModelSizes


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Of `count` GPUs that are alike; title: what is on each"""

    title: str
    count: int
    memory: MemoryPlan


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The first of `devices` has an engine, the last a learner rank.

    ranks: learner ranks, each of which may keep something in the host's memory
    """

    devices: tuple[DevicePlan, ...]
    ranks: int

    @property
    def fits(self) -> bool:
        return all(device.memory.fits for device in self.devices)

    @property
    def engine(self) -> MemoryPlan:
        """Of a GPU with an engine."""
        return self.devices[0].memory

    @property
    def learner(self) -> MemoryPlan:
        """Of the GPU with a learner rank that has the least room for it."""
        return next(device.memory for device in self.devices if device.memory.of("learner"))

    @property
    def host(self) -> int:
        """Bytes in the hosts' memory, of all ranks together."""
        return self.ranks * self.learner.host


def plan_run(config: Config, model: ModelSizes, device: Device) -> RunPlan:
    """With every GPU being `device`, whatever this machine has."""
    config = config.model_copy(update={"placement": config.placement.model_copy(update={"device": "cuda"})})
    ranks, workers = config.learner.ranks, config.rollout.workers
    if config.placement.kind == "colocated":
        shared = plan_memory(config, model, device)
        devices = [DevicePlan("the first rank, and the engines beside it" if ranks > 1 else "", 1, shared)]
        if ranks > 1:
            alone = plan_memory(config, model, device, offload=shared.offload, engines=0)
            devices.append(DevicePlan("each further rank", ranks - 1, alone))
        return RunPlan(tuple(devices), ranks)
    engine = plan_memory(config, model, device, rank=False, engines=1)
    rank = plan_memory(config, model, device, engines=0)
    return RunPlan((DevicePlan("each engine", workers, engine), DevicePlan("each learner rank", ranks, rank)), ranks)
