"""Finds operators that read a tensor's values on the host, which on a GPU wait for all that has been asked of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_READ_VALUES = {
    *(aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.allclose),
    # The size of what they return depends on values.
    *(aten.nonzero, aten.masked_select, aten.bincount, aten.unique_consecutive, aten.unique_dim, aten._unique2),
}
_COPIES = ("tolist", "numpy", "cpu", "__array__")
_INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class HostReads(TorchDispatchMode):
    """Collects the names of such operators, on a CPU as if the tensors were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __enter__(self) -> Self:
        self._patches = ExitStack()
        for name in _COPIES:  # on a CPU these are no operators
            self._patches.enter_context(patch.object(torch.Tensor, name, self._noted(name)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def _noted(self, name: str) -> Any:
        method = getattr(torch.Tensor, name)

        def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.found.append(name)
            return method(tensor, *args, **kwargs)

        return noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._reads(func, args, kwargs):
            self.found.append(str(func))
        return func(*args, **kwargs)

    @staticmethod
    def _reads(func: Any, args: Any, kwargs: Any) -> bool:
        packet = func.overloadpacket
        if packet is aten.repeat_interleave:
            return kwargs.get("output_size") is None
        if packet in _INDEXED:
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return packet in _READ_VALUES
