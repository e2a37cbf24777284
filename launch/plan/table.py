"""A plan as text, and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from launch.plan.advice import Advice
from launch.plan.devices import GIB
from launch.plan.memory_plan import MemoryPlan, Part
from launch.plan.sizes import ModelSizes

_WIDTH = 34


def plan_table(plan: MemoryPlan, model: ModelSizes, name: str) -> str:
    """Every part in GiB; in brackets what is not alive when the device is fullest."""
    memory = plan.device.memory
    engines = f"{plan.engines} engines, each" if plan.engines > 1 else "engine"
    lines = [
        f"{name}, {model.parameters / 1e9:.2f}B parameters, on {plan.device.name}: {memory / GIB:.1f} GiB",
        "",
        *_section("learner", plan, "learner", 1, f"learner.gpu_memory_share {plan.learner_share}"),
        "",
        *_section(engines, plan, "engine", plan.engines, f"rollout.gpu_memory_share {plan.engine_share}"),
        "",
        _line("kept free", plan.spare, f"{plan.device.used / GIB:.2f} taken by others" if plan.device.used else ""),
        _line("missing", plan.needed - memory) if plan.needed > memory else _line("free", plan.free),
        "",
        f"a step: {plan.sampled:,} sequences, at most {plan.sampled * plan.longest:,} tokens",
    ]
    if plan.offload:
        lines.append(
            f"the optimizer is offloaded: {plan.host / GIB:.1f} GiB in the host's memory, and AdamW runs on its cores"
        )
    return "\n".join(lines)


def advice_text(plan: MemoryPlan, advice: Advice) -> str:
    """What does not fit, and what would."""
    wanted = _reason(plan)
    if advice.changes:
        return f"it does not fit: {wanted}. This fits: {' '.join(map(str, advice.changes))}"
    would = [f"it fits on {', '.join(advice.devices)}"] if advice.devices else ["it fits on no GPU that is known"]
    if advice.shape is not None:
        would.append(f"{advice.shape} is the largest well-known model that fits here")
    return f"it does not fit, whatever is changed: {wanted}. With all that saves memory {'; '.join(would)}"


def _reason(plan: MemoryPlan) -> str:
    if plan.needed > plan.device.memory:
        return f"{plan.needed / GIB:.1f} GiB are needed and {plan.device.name} has {plan.device.memory / GIB:.1f}"
    if plan.cache < plan.fewest:
        return (
            f"the engine's cache would have {plan.cache / GIB:.1f} GiB, for {plan.sequences} sequences of "
            f"{plan.longest:,} tokens, and {plan.fewest / GIB:.1f} are the least"
        )
    shares = f"learner.gpu_memory_share={plan.learner_share} and rollout.gpu_memory_share={plan.engine_share}"
    return f"the learner needs {plan.of('learner') / GIB:.1f} GiB, which {shares} do not leave it"


def plan_data(plan: MemoryPlan, model: ModelSizes, name: str, advice: Advice | None) -> dict[str, Any]:
    """For --json; sizes in bytes."""
    return {
        "model": name,
        "parameters": model.parameters,
        "fits": plan.fits,
        "needed": plan.needed,
        "free": plan.free,
        "rollout.gpu_memory_share": plan.engine_share,
        "rollout.gpu_cache_gib": plan.cache / GIB,
        "learner.gpu_memory_share": plan.learner_share,
        "learner.offload_optimizer": plan.offload,
        "advice": None if advice is None else asdict(advice),
        **{key: value for key, value in asdict(plan).items() if key not in ("offload", "learner_limit")},
    }


def _section(title: str, plan: MemoryPlan, owner: str, count: int, share: str) -> list[str]:
    own = [part for part in plan.parts if part.owner == owner]
    return [_line(title, plan.of(owner), share), *map(_part, own)]


def _part(part: Part) -> str:
    return _line(f"  {part.name}", part.size, part.detail, brackets=not part.counted)


def _line(name: str, size: int, detail: str = "", *, brackets: bool = False) -> str:
    number = f"{size / GIB:.2f}"
    shown = f"({number})" if brackets else f"{number} "
    return f"{name:<{_WIDTH}} {shown:>9}  {detail}".rstrip()
