"""Where the weights that are sent come from, and that they are fit to be sent."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Protocol, cast, runtime_checkable

import torch

from shared.errors import WeightSyncError
from shared.weight_wire import ITEM_BYTES, DtypeName


@runtime_checkable
class WeightSource(Protocol):
    """The learner's parameters, in layer order, tied ones once.

    Where the parameters are spread over ranks, a pass over them is a collective step which the source
    itself sees to. A pass that has begun is always run to its end.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → whole shape of everything that a pass yields, in its order; known without one."""

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A fresh pass: each parameter whole, in any dtype, good until the next is asked for."""


class ModuleSource:
    """A module that has all its parameters itself."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `WeightSource.shapes`."""
        return {name: tuple(parameter.shape) for name, parameter in self._module.named_parameters()}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The module's present parameters."""
        for name, parameter in self._module.named_parameters():
            yield name, parameter.detach()


def one_pass(
    source: WeightSource, shapes: Mapping[str, tuple[int, ...]]
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """A pass over the source, run to its end even when it is left.

    Raises WeightSyncError unless it yields exactly `shapes`, in that order: what it should be was told
    to the engines before.
    """
    parameters = iter(source)
    try:
        for name, shape in shapes.items():
            got = next(parameters, None)
            if got is None or got[0] != name or tuple(got[1].shape) != tuple(shape):
                what = "nothing more" if got is None else f"{got[0]} {tuple(got[1].shape)}"
                raise WeightSyncError(f"the weights' source gave {what} where {name} {tuple(shape)} was due")
            yield got
        if (got := next(parameters, None)) is not None:
            raise WeightSyncError(f"the weights' source gave {got[0]}, which it had not named")
    finally:
        for _ in parameters:
            pass


def check_finite(source: WeightSource, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Raise WeightSyncError, naming a parameter, if one holds NaN or infinity once cast to `dtype`.

    One pass, and one wait for the device at its end.
    """
    flags = []
    with closing(one_pass(source, shapes)) as parameters:
        for _, tensor in parameters:
            flags.append(is_finite(tensor.detach().to(dtype)))
    if flags and not all(finite := torch.stack(flags).tolist()):
        refuse_not_finite(list(shapes)[finite.index(False)], dtype)


def is_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether no element is NaN or infinite: bool, on the tensor's device."""
    # NaN is passed on by both extremes. Looking for them takes a quarter of the time of looking at each element.
    return (
        torch.isfinite(torch.stack(torch.aminmax(tensor))).all()
        if tensor.numel()
        else tensor.new_ones((), dtype=torch.bool)
    )


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """The name that the weights' dtype travels under; WeightSyncError if weights cannot be sent in it."""
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise WeightSyncError(f"weights cannot be sent as {dtype}: there are {', '.join(ITEM_BYTES)}")
    return cast("DtypeName", name)


def refuse_not_finite(name: str, dtype: torch.dtype) -> None:
    """Raise the error of weights that are not sent."""
    raise WeightSyncError(f"{name} holds NaN or infinity in {dtype}: these weights are not sent")
