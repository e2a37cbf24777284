"""How much memory the first learner rank takes, for metrics.jsonl."""

from __future__ import annotations

import psutil
import torch


def memory_record() -> dict[str, int]:
    """Bytes. resident_bytes: of this process now, shared memory included; on a GPU also the most that tensors took
    (gpu_allocated_bytes) and that torch held for them (gpu_reserved_bytes) since this was last asked."""
    record = {"resident_bytes": psutil.Process().memory_info().rss}
    if torch.cuda.is_initialized():
        record["gpu_allocated_bytes"] = torch.cuda.max_memory_allocated()
        record["gpu_reserved_bytes"] = torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
    return record
