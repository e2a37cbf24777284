"""The most memory that a training step holds, to the byte, in a process of its own."""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing import get_context
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from launch.bench.models import bench_model
from launch.bench.training_arms import make_policy
from launch.bench.training_batch import made_batch
from shared.config import LearnerConfig

# Of a parameter besides itself: float32 gradient, master copy, and Adam's two moments.
_STATE_BYTES = 16
_MEASURED = "the measured step"


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes: the largest total during a step, that before it, and what embedding and head themselves have of both.

    own: parameters of embedding and head, with gradient, master copy and moments
    """

    peak: int
    before: int
    own: int

    @property
    def beside(self) -> int:
        """The largest total without the embedding and head themselves."""
        return self.peak - self.own


def step_memory(model: str, dtype: str, vocabulary: int, rows: int, **sizes: Any) -> StepMemory:
    """Of one `Policy.train` on `rows` distinct rows, after one that warms up.

    sizes: `threads` and `max_tokens` of the learner, and the batch's (`made_batch`)
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_step_memory, model, dtype, vocabulary, rows, sizes).result()


def _step_memory(name: str, dtype: str, vocabulary: int, rows: int, sizes: dict[str, Any]) -> StepMemory:
    threads = sizes.pop("threads")
    torch.set_num_threads(threads)
    config = LearnerConfig(threads=threads, max_tokens=sizes.pop("max_tokens"))
    batch = made_batch(rows=rows, distinct=rows, vocabulary=vocabulary, **sizes)
    with bench_model(name, vocabulary=vocabulary, dtype=dtype) as model:
        policy = make_policy(model.folder, dtype, config)
    own = sum(
        torch.Size(shape).numel() * (getattr(torch, dtype).itemsize + _STATE_BYTES)
        for name, shape in policy.shapes.items()
        if name.endswith(("embed_tokens.weight", "lm_head.weight"))
    )
    if torch.cuda.is_available():
        policy.train(batch)
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        policy.train(batch)
        return StepMemory(torch.cuda.max_memory_allocated(), before, own)
    gc.collect()
    held = _held()
    # From the warm-up on: what was allocated earlier is not missed when it is freed.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        policy.train(batch)
        gc.collect()
        with record_function(_MEASURED):
            policy.train(batch)
    before, peak = _allocated(recorded)
    return StepMemory(held + peak, held + before, own)


def _held() -> int:
    """Bytes of all tensors that live, each storage once."""
    tensors = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def _allocated(recorded: profile) -> tuple[int, int]:
    """What was allocated and not yet freed, by the allocator's own account: before the measured step; most in it."""
    events = recorded.profiler.kineto_results.events()
    [begin] = [e.start_ns() for e in events if e.name() == _MEASURED]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    before = sum(nbytes for time, nbytes in changes if time < begin)
    within = accumulate((nbytes for time, nbytes in changes if time >= begin), initial=before)
    return before, max(within)
