"""Preparing new weights beside the live ones, so that only pointers move while the engine is paused.

A `Target` is one piece of the engine's model that can be rebuilt from wire parameters: `build` makes
the new tensors without touching the live ones and returns the function that puts them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from rollout.receiving import Batch, Ledger
from shared.weight_wire import Shapes

Read = Callable[[str], torch.Tensor]
Swap = Callable[[], None]
# Packs `layer.weight` [out, in] into `layer.cpu_linear`; may drop the weight and convert `layer.bias`.
Pack = Callable[[Any], None]


class Target(Protocol):
    """A part of the live model, rebuilt from the wire parameters `shapes`."""

    @property
    def shapes(self) -> Shapes: ...

    def build(self, read: Read) -> Swap: ...


@dataclass(frozen=True)
class VectorTarget:
    """A parameter that is used as it is, such as a norm's weight."""

    name: str
    parameter: torch.Tensor

    @property
    def shapes(self) -> Shapes:
        return {self.name: tuple(self.parameter.shape)}

    def build(self, read: Read) -> Swap:
        tensor = read(self.name)

        def swap() -> None:
            self.parameter.data = tensor

        return swap


@dataclass(frozen=True)
class LinearTarget:
    """A linear layer whose weight is packed for the CPU: one wire parameter, or several stacked by rows.

    rows: output features of each name in `weights` (and in `biases`, which is empty without bias)
    """

    module: Any
    weights: tuple[str, ...]
    biases: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    pack: Pack

    @property
    def shapes(self) -> Shapes:
        weights = {name: (rows, self.columns) for name, rows in zip(self.weights, self.rows, strict=True)}
        biases = dict(zip(self.biases, ((rows,) for rows in self.rows), strict=False))
        return weights | biases

    def build(self, read: Read) -> Swap:
        packed = SimpleNamespace(
            weight=_stacked([read(name) for name in self.weights]),
            bias=_stacked([read(name) for name in self.biases]) if self.biases else None,
        )
        self.pack(packed)

        def swap() -> None:
            self.module.cpu_linear = packed.cpu_linear
            self.module.weight.data = packed.weight.data
            if packed.bias is not None:
                self.module.bias.data = packed.bias.data

        return swap


@dataclass(frozen=True)
class EmbeddingTarget:
    """One vocabulary matrix with everything that uses it.

    weight: the live matrix, [padded vocabulary, columns], shared by all users
    heads: output projections on it. Each keeps a packed copy that does not follow the matrix, tied
        or not, and has to be replaced.
    tables: look-ups of it. They never use their packed copy, so they are left without one.
    """

    name: str
    weight: torch.Tensor
    vocabulary: int
    heads: tuple[Any, ...]
    tables: tuple[Any, ...]
    pack: Pack

    @property
    def shapes(self) -> Shapes:
        return {self.name: (self.vocabulary, self.weight.shape[1])}

    def build(self, read: Read) -> Swap:
        matrix = torch.zeros(self.weight.shape, dtype=self.weight.dtype)
        matrix[: self.vocabulary] = read(self.name)
        packed = SimpleNamespace(weight=matrix, bias=None)
        if self.heads:
            self.pack(packed)

        def swap() -> None:
            self.weight.data = matrix
            for head in self.heads:
                head.cpu_linear = packed.cpu_linear
            for table in self.tables:
                table.cpu_linear = torch.nn.functional.linear

        return swap


class StagedWeights:
    """New weights built beside the live ones, which stay untouched until `commit` (`PendingWeights`)."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._ledger = Ledger(shapes_of(targets))
        self._target_of = {name: target for target in targets for name in target.shapes}
        self._arrived: dict[str, torch.Tensor] = {}
        self._swaps: list[Swap] = []

    def take(self, batch: Batch) -> None:
        """Build each target whose last parameter is here."""
        for name, tensor in batch:
            self._ledger.enter(name, tensor)
            self._arrived[name] = _unshared(tensor)
            target = self._target_of[name]
            if self._arrived.keys() >= target.shapes.keys():
                self._swaps.append(target.build(self._arrived.pop))

    def check_complete(self) -> None:
        """See `PendingWeights.check_complete`."""
        self._ledger.check_complete()

    def commit(self) -> None:
        """Put every new tensor in place."""
        self.check_complete()
        for swap in self._swaps:
            swap()
        self._swaps.clear()

    def discard(self) -> None:
        """Nothing live was touched."""
        self._swaps.clear()
        self._arrived.clear()


def shapes_of(targets: Sequence[Target]) -> Shapes:
    """Everything that the targets are built from: name → shape."""
    return {name: shape for target in targets for name, shape in target.shapes.items()}


def _unshared(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if it would keep the memory of others alive."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
