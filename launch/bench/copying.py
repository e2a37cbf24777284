"""The reference of every transport: copying the same bytes from memory to memory."""

from __future__ import annotations

import os
import time

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
        threads = torch.get_num_threads()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        try:
            _synchronize(self._sources[0])
            begin = time.monotonic()
            for source, copy in zip(self._sources, self._copies, strict=True):
                copy.copy_(source)
            _synchronize(self._sources[0])
            return time.monotonic() - begin
        finally:
            torch.set_num_threads(threads)


def _synchronize(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
