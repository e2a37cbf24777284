"""Preparing new weights beside the live ones, so that only pointers move while the engine is paused.

A `Target` is one piece of the engine's model that can be rebuilt from wire parameters: `build` makes
the new tensors without touching the live ones and returns the function that puts them in place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from rollout.segment import Segment, check_manifest
from shared.errors import WeightSyncError
from shared.weight_manifest import Manifest

Shapes = Mapping[str, tuple[int, ...]]
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


class Staging:
    """One update being built on a thread of its own, while the engine goes on with the live weights."""

    def __init__(self, targets: Sequence[Target], manifest: Manifest, dtype: torch.dtype) -> None:
        """Checks the manifest and opens the segment; raises WeightSyncError with nothing begun."""
        expected = {name: shape for target in targets for name, shape in target.shapes.items()}
        check_manifest(manifest, expected, dtype)
        self._targets = targets
        self._segment = Segment(manifest)
        self._swaps: list[Swap] = []
        self._error: str | None = None
        self._cancelled = threading.Event()
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="weight-staging", daemon=True)
        self._thread.start()

    @property
    def state(self) -> dict[str, Any]:
        """done: nothing more will happen; error: why it failed, or None; seconds: duration."""
        return {"done": not self._thread.is_alive(), "error": self._error, "seconds": self._seconds}

    def cancel(self) -> None:
        """Stop at the next target; nothing of this update can be committed any more."""
        self._cancelled.set()

    def commit(self) -> None:
        """Put every new tensor in place. WeightSyncError, with nothing changed, unless all are ready."""
        self._thread.join()
        if self._error is not None or self._cancelled.is_set():
            raise WeightSyncError(self._error or "the staged weights were discarded")
        for swap in self._swaps:
            swap()
        self._swaps.clear()

    def _run(self) -> None:
        begin = time.monotonic()
        try:
            with torch.inference_mode(False), torch.no_grad():
                for target in self._targets:
                    if self._cancelled.is_set():
                        break
                    self._swaps.append(target.build(self._segment.read))
        except Exception as error:  # a thread's errors go nowhere: they are raised by `commit`
            self._swaps.clear()
            self._error = str(error) if isinstance(error, WeightSyncError) else f"{type(error).__name__}: {error}"
        finally:
            self._segment.close()
            self._seconds = time.monotonic() - begin


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
