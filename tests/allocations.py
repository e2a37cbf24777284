"""What torch takes from the CPU's allocator, to hold the memory planner against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


@dataclass
class Allocations:
    """Bytes above what was there at the beginning: at most, and at the end."""

    peak: int = 0
    kept: int = 0


@contextmanager
def allocations() -> Iterator[Allocations]:
    """Count what is taken and given back until the context ends; the numbers are there afterwards."""
    counted = Allocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield counted
    for _, size in sorted(_changes(profiler.profiler.kineto_results.experimental_event_tree())):
        counted.kept += size
        counted.peak = max(counted.peak, counted.kept)


def _changes(events: list[Any]) -> Iterator[tuple[int, int]]:
    """(time, bytes taken or, negative, given back)."""
    for event in events:
        if event.tag == _EventType.Allocation and event.typed[1].device.type == "cpu":
            yield event.start_time_ns, event.typed[1].alloc_size
        yield from _changes(event.children)
