"""A plan as text, and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from launch.plan.advice import Advice
from launch.plan.devices import GIB
from launch.plan.memory_plan import MemoryPlan, Part
from launch.plan.run_plan import RunPlan
from shared.model_sizes import ModelSizes

_WIDTH = 34


def plan_table(plan: RunPlan, model: ModelSizes, name: str) -> str:
    """Every part in GiB; in brackets what is not alive when the device is fullest."""
    first, count = plan.engine, sum(device.count for device in plan.devices)
    gpus = first.device.name if count == 1 else f"{count} GPUs, each {first.device.name}"
    lines = [f"{name}, {model.parameters / 1e9:.2f}B parameters, on {gpus}: {first.device.memory / GIB:.1f} GiB"]
    for device in plan.devices:
        if device.title:
            lines += ["", f"GPU of {device.title}" + (f" ({device.count} such)" if device.count > 1 else "")]
        lines += _device(device.memory)
    lines += ["", f"a step: {first.sampled:,} sequences, at most {first.sampled * first.longest:,} tokens"]
    if plan.learner.offload:
        lines.append(
            f"the optimizer is offloaded: {plan.host / GIB:.1f} GiB in the host's memory, where AdamW runs on "
            "learner.threads of its cores"
        )
    return "\n".join(lines)


def _device(plan: MemoryPlan) -> list[str]:
    memory = plan.device.memory
    lines = []
    if plan.of("learner"):
        lines += ["", *_section("learner", plan, "learner", f"learner.gpu_memory_share {plan.learner_share}")]
    if plan.engines:
        engines = f"{plan.engines} engines, each" if plan.engines > 1 else "engine"
        lines += ["", *_section(engines, plan, "engine", f"rollout.gpu_memory_share {plan.engine_share}")]
    return [
        *lines,
        "",
        _line("kept free", plan.spare, f"{plan.device.used / GIB:.2f} taken by others" if plan.device.used else ""),
        _line("missing", plan.needed - memory) if plan.needed > memory else _line("free", plan.free),
    ]


def advice_text(plan: RunPlan, advice: Advice) -> str:
    """What does not fit, and what would."""
    wanted = _reason(next(device.memory for device in plan.devices if not device.memory.fits))
    if advice.changes:
        return f"it does not fit: {wanted}. This fits: {' '.join(map(str, advice.changes))}"
    would = [f"it fits on {', '.join(advice.devices)}"] if advice.devices else ["it fits on no GPU that is known"]
    if advice.shape is not None:
        would.append(f"{advice.shape} is the largest well-known model that fits here")
    return f"it does not fit, whatever is changed: {wanted}. With all that saves memory {'; '.join(would)}"


def _reason(plan: MemoryPlan) -> str:
    if plan.needed > plan.device.memory:
        return f"{plan.needed / GIB:.1f} GiB are needed and {plan.device.name} has {plan.device.memory / GIB:.1f}"
    if plan.engines and plan.cache < plan.fewest:
        return (
            f"the engine's cache would have {plan.cache / GIB:.1f} GiB, for {plan.sequences} sequences of "
            f"{plan.longest:,} tokens, and {plan.fewest / GIB:.1f} are the least"
        )
    shares = f"learner.gpu_memory_share={plan.learner_share} and rollout.gpu_memory_share={plan.engine_share}"
    return f"the learner needs {plan.of('learner') / GIB:.1f} GiB, which {shares} do not leave it"


def plan_data(plan: RunPlan, model: ModelSizes, name: str, advice: Advice | None) -> dict[str, Any]:
    """For --json; sizes in bytes. devices: GPUs that are alike, each with its parts"""
    return {
        "model": name,
        "parameters": model.parameters,
        "fits": plan.fits,
        "rollout.gpu_memory_share": plan.engine.engine_share,
        "rollout.gpu_cache_gib": plan.engine.cache / GIB,
        "learner.gpu_memory_share": plan.learner.learner_share,
        "learner.offload_optimizer": plan.learner.offload,
        "advice": None if advice is None else asdict(advice),
        "devices": [
            {
                "title": device.title,
                "count": device.count,
                "fits": device.memory.fits,
                "needed": device.memory.needed,
                "free": device.memory.free,
                **{k: v for k, v in asdict(device.memory).items() if k not in ("offload", "learner_limit")},
            }
            for device in plan.devices
        ],
    }


def _section(title: str, plan: MemoryPlan, owner: str, share: str) -> list[str]:
    own = [part for part in plan.parts if part.owner == owner]
    return [_line(title, plan.of(owner), share), *map(_part, own)]


def _part(part: Part) -> str:
    return _line(f"  {part.name}", part.size, part.detail, brackets=not part.counted)


def _line(name: str, size: int, detail: str = "", *, brackets: bool = False) -> str:
    number = f"{size / GIB:.2f}"
    shown = f"({number})" if brackets else f"{number} "
    return f"{name:<{_WIDTH}} {shown:>9}  {detail}".rstrip()
