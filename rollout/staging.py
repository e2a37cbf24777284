"""Preparing new weights beside the live ones, so that only pointers move while the engine is paused.

A `Target` is one piece of the engine's model that can be rebuilt from wire parameters: `build` makes
the new tensors without touching the live ones and returns the function that puts them in place. `live`
says what the piece computes with, however it came there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from rollout.receiving import Batch, Ledger
from shared.weight_checksum import total_sums
from shared.weight_wire import Shapes, Sums

Read = Callable[[str], torch.Tensor]
Swap = Callable[[], None]
# Packs `layer.weight` [out, in] into `layer.cpu_linear`; may drop the weight and convert `layer.bias`.
Pack = Callable[[Any], None]


class Target(Protocol):
    """A part of the live model, rebuilt from the wire parameters `shapes`."""

    @property
    def shapes(self) -> Shapes: ...

    def build(self, read: Read) -> Swap: ...

    def live(self) -> tuple[Sums | None, ...]:
        """Of each copy that the engine computes with: the content's sums, or None where nobody knows."""


@dataclass(frozen=True)
class VectorTarget:
    """A module's weight that is used as it is, such as a norm's."""

    name: str
    module: Any

    @property
    def shapes(self) -> Shapes:
        return {self.name: tuple(self.module.weight.shape)}

    def build(self, read: Read) -> Swap:
        tensor = read(self.name)

        def swap() -> None:
            self.module.weight.data = tensor

        return swap

    def live(self) -> tuple[Sums | None, ...]:
        return (_live_sums(self.module),)


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
        sums = total_sums(packed.weight, packed.bias)
        self.pack(packed)

        def swap() -> None:
            self.module.cpu_linear = packed.cpu_linear
            self.module.weight.data = packed.weight.data
            if packed.bias is not None:
                self.module.bias.data = packed.bias.data
            _note(self.module, packed, sums)

        return swap

    def live(self) -> tuple[Sums | None, ...]:
        return (_live_sums(self.module),)


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
        sums = total_sums(matrix[: self.vocabulary])
        looked_up = SimpleNamespace(weight=matrix, bias=None, cpu_linear=torch.nn.functional.linear)
        packed = SimpleNamespace(weight=matrix, bias=None)
        if self.heads:
            self.pack(packed)

        def swap() -> None:
            self.weight.data = matrix
            for head in self.heads:
                head.cpu_linear = packed.cpu_linear
                _note(head, packed, sums)
            for table in self.tables:
                table.cpu_linear = looked_up.cpu_linear
                _note(table, looked_up, sums)

        return swap

    def live(self) -> tuple[Sums | None, ...]:
        return tuple(_live_sums(module, rows=self.vocabulary) for module in (*self.tables, *self.heads))


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


def _note(module: Any, made: Any, sums: Sums) -> None:
    """Keep what the module computes with once `made`, packed from weights of these sums, is in its place."""
    module.primezero_live = (_place(made), sums)


def _live_sums(module: Any, rows: int | None = None) -> Sums | None:
    """Of what the module computes with: of its parameters, or, where these are packed, of what they were packed from.

    None where what it has now is not what was noted: not the last update's. rows: of the weight, that are not padding
    """
    if not hasattr(module, "cpu_linear"):
        return total_sums(module.weight[:rows], getattr(module, "bias", None))
    place, sums = getattr(module, "primezero_live", (None, None))
    return sums if place == _place(module) else None


def _place(module: Any) -> tuple[object, ...]:
    """What a packed layer's forward reaches its weights by."""
    pointers = [
        None if tensor is None else tensor.data_ptr() for tensor in (module.weight, getattr(module, "bias", None))
    ]
    return module.cpu_linear, *pointers
