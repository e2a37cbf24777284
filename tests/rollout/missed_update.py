"""Planted faults: a receiver that takes an update in, and leaves something of the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from switching import SwitchingWorkerExtension

from rollout.staging import EmbeddingTarget, LinearTarget, Target, VectorTarget


@dataclass(frozen=True)
class Missed:
    """A piece of the model that is built, and not put in place."""

    target: Target

    @property
    def shapes(self) -> Any:
        return self.target.shapes

    def build(self, read: Any) -> Callable[[], None]:
        self.target.build(read)
        return lambda: None

    def live(self) -> Any:
        return self.target.live()


def _without_head(targets: list[Target]) -> list[Target]:
    """The packed copy of the tied output projection is forgotten."""
    return [replace(target, heads=()) if isinstance(target, EmbeddingTarget) else target for target in targets]


def _without_first(kind: type) -> Callable[[list[Target]], list[Target]]:
    def missed(targets: list[Target]) -> list[Target]:
        first = next(target for target in targets if isinstance(target, kind))
        return [Missed(target) if target is first else target for target in targets]

    return missed


FAULTS: Mapping[str, Callable[[list[Target]], list[Target]]] = {
    "all": lambda targets: [Missed(target) for target in targets],
    "head": _without_head,
    "embedding": _without_first(EmbeddingTarget),
    "linear": _without_first(LinearTarget),
    "norm": _without_first(VectorTarget),
}


class ForgetfulWorkerExtension(SwitchingWorkerExtension):
    def plant(self, fault: str) -> None:
        receiver = self.weight_transfer_engine
        self._sound_targets = receiver.targets
        receiver.targets = FAULTS[fault](receiver.targets)

    def remove_fault(self) -> None:
        self.weight_transfer_engine.targets = self._sound_targets
