"""An engine's side of weight sync without an engine: a dictionary of weights, and what receives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import torch

from rollout.receiving import Receiver, Receiving
from rollout.staging import StagedWeights, Target, VectorTarget
from shared.errors import WeightSyncError


class PlainEngine:
    """Stages and swaps as the engine's worker process does on the CPU.

    weights: the live ones; make_receiver: from expected shapes and dtype
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], make_receiver: Callable[[Any, str], Receiver]) -> None:
        self.weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self._targets: Sequence[Target] = [
            VectorTarget(name, SimpleNamespace(weight=tensor)) for name, tensor in self.weights.items()
        ]
        self.receiver = make_receiver(shapes, "float32")
        self._pending: StagedWeights | None = None
        self.receiving: Receiving | None = None

    def start(self) -> None:
        self.discard()
        self.receiver.begin()
        self._pending = StagedWeights(self._targets)

    def update(self, info: dict[str, Any]) -> None:
        assert self._pending is not None
        self.receiving = Receiving(self.receiver.open(info), self._pending)
        self.receiving.start()

    def finish(self) -> None:
        assert self._pending is not None
        assert self.receiving is not None
        self.receiving.check()
        self._pending.commit()
        self._pending = self.receiving = None

    def discard(self) -> None:
        if self.receiving is not None:
            self.receiving.cancel()
        if self._pending is not None:
            self._pending.discard()
        self._pending = self.receiving = None


class PlainClient:
    """The weight-sync client of several such engines. What it passes on goes through msgpack, as on the stream."""

    def __init__(self, engines: Sequence[PlainEngine]) -> None:
        self.members: list[PlainEngine] = list(engines)
        self.calls: list[str] = []
        self.change_info: Callable[[dict[str, Any]], None] = lambda info: None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append("init")
        for position, engine in enumerate(self.members):
            info = _over_the_wire(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += position
            engine.receiver.join(info)

    def start_weight_update(self) -> None:
        self.calls.append("start")
        for engine in self.members:
            engine.start()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append("update")
        info = _over_the_wire(update_info)
        self.change_info(info)
        for engine in self.members:
            engine.update(info)
        for engine in self.members:
            assert engine.receiving is not None
            engine.receiving.check()

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append(f"finish {weight_version}")
        for engine in self.members:
            engine.finish()


class DictSource:
    """Weights by name; counts the passes over it that have been run to their end."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights
        self.passes = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.weights.items()}

    def __iter__(self) -> Any:
        yield from self.weights.items()
        self.passes += 1


def some_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Of odd sizes, so that nothing is aligned by chance: 10 tensors, 4 to 3,900 bytes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 7), (13,), (1,), (25, 39), (2, 3, 5), (11,), (64,), (9, 9), (3,), (31, 2)]
    return {f"layer.{i}.weight": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}


def same(engine: PlainEngine, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(engine.weights[name], weights[name]) for name in weights)


def expect_error(engine: PlainEngine) -> WeightSyncError | None:
    assert engine.receiving is not None
    try:
        engine.receiving.check()
    except WeightSyncError as error:
        return error
    return None


def _over_the_wire(info: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(info))
    return decoded
