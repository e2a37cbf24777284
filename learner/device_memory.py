"""A GPU's memory, as PyTorch hands it out to the learner."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from shared.errors import DeviceMemoryError

ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# More than any activation of a usual micro-batch, less than a model's gradients.
_WHOLE_MIB = 1024


def keep_large_blocks_whole() -> None:
    """Have a freed block as large as all gradients taken again by the next step's, and by nothing smaller.

    Otherwise activations settle in it, the next gradients find no room in what is left of it, and the learner takes
    their size once more than it needs. To be called before this process uses its GPU; a user's own settings stay.
    """
    if not any(os.environ.get(name) for name in ALLOCATOR_SETTINGS):
        os.environ[ALLOCATOR_SETTINGS[0]] = f"max_split_size_mb:{_WHOLE_MIB}"


@contextlib.contextmanager
def explain_full_memory(share: float | None) -> Iterator[None]:
    """DeviceMemoryError, with what to change, where PyTorch has no memory left for what is done within.

    share: of the GPU's memory that this process may take; None: all
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        limit = "" if share is None else f" (learner.gpu_memory_share={share:g})"
        counted, *_ = str(error).split(" If reserved")  # what it advises then cannot be combined with CUDA IPC
        raise DeviceMemoryError(
            f"the learner's memory on its GPU{limit} is full. Lower learner.max_tokens, set "
            "learner.activation_checkpointing or learner.offload_optimizer, or give it more with a larger "
            f"learner.gpu_memory_share; `primezero plan` shows what takes how much. PyTorch says: {counted}"
        ) from error
