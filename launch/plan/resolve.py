"""What a run's configuration leaves to the plan: the shares of its GPU, and whether the optimizer is offloaded."""

from __future__ import annotations

from typing import Any

from launch.plan.advice import advise
from launch.plan.devices import GIB, Device
from launch.plan.host_memory import available_memory
from launch.plan.learner_memory import learner_states
from launch.plan.memory_plan import ITEM_BYTES
from launch.plan.run_plan import RunPlan, plan_run
from launch.plan.table import advice_text
from shared.config import Config
from shared.errors import PlanError
from shared.model_sizes import ModelSizes, folder_sizes


def resolve_memory(config: Config, device: Device | None) -> tuple[Config, RunPlan | None]:
    """The configuration as it will run, and the plan of its GPUs; device: the smallest of them; None where there are
    none, and there is nothing to split.

    Raises PlanError, with what to change, where GPU or host have no room.
    """
    if device is None:
        if config.placement.kind != "cluster":  # whose machines are not known here
            check_cpu_memory(config, folder_sizes(config.model.path))
        return _with_sections(config, learner={"offload_optimizer": config.learner.offload_optimizer is True}), None
    model = folder_sizes(config.model.path)
    plan = plan_run(config, model, device)
    if not plan.fits:
        raise PlanError(advice_text(plan, advise(config, model, device)))
    check_host(plan)
    return _with_sections(
        config,
        learner={"offload_optimizer": plan.learner.offload, "gpu_memory_share": plan.learner.learner_share},
        rollout={"gpu_memory_share": plan.engine.engine_share, "gpu_cache_gib": plan.engine.cache / GIB},
    ), plan


def check_cpu_memory(config: Config, model: ModelSizes) -> None:
    """PlanError where this machine, without a GPU, has no room for what engines and learner hold for certain.

    Of each engine its weights, those that replace them, and its attention cache; of each rank weights, gradients,
    optimizer and a reference model. Processes themselves, and what they compute with, come on top.
    """
    item, ranks, workers = ITEM_BYTES[config.model.dtype], config.learner.ranks, config.rollout.workers
    cache = int(config.rollout.kv_cache_gib * GIB)
    engine = 2 * item * model.parameters + cache
    rank = learner_states(model, item=item, zero_stage=config.learner.zero_stage, ranks=ranks, offload=False).resident
    if config.learner.kl_coefficient > 0:
        rank += item * model.parameters
    needed, available = workers * engine + ranks * rank, available_memory()
    if needed <= available:
        return
    remedies = [
        *(["fewer rollout.workers"] if workers > 1 else []),
        *(["a smaller rollout.kv_cache_gib"] if config.rollout.kv_cache_gib > 1 else []),
        *(["fewer learner.ranks"] if ranks > 1 else []),
        "a smaller model",
    ]
    raise PlanError(
        f"this run takes more than {needed / GIB:.1f} GiB of memory, and {available / GIB:.1f} are available: "
        f"{engine / GIB:.1f} for each engine ({workers}), {cache / GIB:.1f} of it attention cache, and "
        f"{rank / GIB:.1f} for each learner rank ({ranks}). Try {', or '.join(remedies)}"
    )


def check_host(plan: RunPlan) -> None:
    """PlanError where an offloaded optimizer has no room in this machine's memory."""
    if plan.host > (available := available_memory()):
        raise PlanError(
            f"the optimizer has to be offloaded, which takes {plan.host / GIB:.1f} GiB of the host's memory, and "
            f"{available / GIB:.1f} are available: use a host with more, a larger GPU, or a smaller model"
        )


def _with_sections(config: Config, **sections: dict[str, Any]) -> Config:
    parts = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=parts)
