"""Runs what is computed on a GPU without one: shapes, dtypes and devices are real, numbers are not there."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Which has the autograd of a device of its own in every build of PyTorch, as CUDA has not.
ELSEWHERE = torch.device("meta")


class OtherDevice(TorchDispatchMode):
    """Operators are only checked: RuntimeError for tensors of two devices, and for what depends on numbers.

    strays: of operators that were given a tensor of the host's beside others, which a GPU waits for, or refuses
    """

    def __init__(self) -> None:
        super().__init__()
        self.strays: list[str] = []
        self._fake = FakeTensorMode()

    def __enter__(self) -> Self:
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A tensor of the host's, on a device."""
        return self._fake.from_tensor(tensor).to(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        devices = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()}
        if len(devices) > 1:
            self.strays.append(str(func))
        return func(*args, **(kwargs or {}))


def is_elsewhere(tensor: FakeTensor) -> bool:
    """For `Tensor.is_cuda`."""
    return tensor.device.type == ELSEWHERE.type
