"""The reference of every transport: copying the same bytes from memory to memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PlainCopy:
    """Copies a module's parameters into memory reserved and touched beforehand, with all the processor's cores."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        """The bytes copied are those that are sent: the parameters in `dtype`, tied ones once."""
        self._sources = [parameter.detach().to(dtype) for parameter in module.parameters()]
        self._copies = [torch.empty_like(source) for source in self._sources]
        self.nbytes = sum(source.nbytes for source in self._sources)
        self.seconds()

    def seconds(self) -> float:
        """Do it once."""
        with torch_threads(len(os.sched_getaffinity(0))):
            _synchronize(self._sources[0])
            begin = time.monotonic()
            for source, copy in zip(self._sources, self._copies, strict=True):
                copy.copy_(source)
            _synchronize(self._sources[0])
            return time.monotonic() - begin


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch computes with `count` threads in this process meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _synchronize(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
