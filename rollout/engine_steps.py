"""The engine's steps as its outputs tell of them, for measurements."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One step: time.monotonic() when its output arrived, and the sequences that got a token."""

    arrived: float
    sequences: int


def watch_steps(llm: Any) -> list[Step]:
    """A list that grows with every step of an AsyncLLM whose output holds tokens."""
    steps: list[Step] = []
    core = llm.engine_core
    get = core.get_output_async

    async def watched() -> Any:
        outputs = await get()
        if outputs.outputs:
            steps.append(Step(time.monotonic(), len(outputs.outputs)))
        return outputs

    # vLLM's output handler looks it up each time.
    core.get_output_async = watched
    return steps
