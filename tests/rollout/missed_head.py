"""A planted fault: a receiver that forgets the packed copy of the tied output projection."""

from __future__ import annotations

from dataclasses import replace

from rollout.staging import EmbeddingTarget
from rollout.weight_transfer import WorkerExtension


class ForgetfulWorkerExtension(WorkerExtension):
    def plant_missed_head(self) -> None:
        receiver = self.weight_transfer_engine
        self._sound_targets = receiver.targets
        receiver.targets = [
            replace(target, heads=()) if isinstance(target, EmbeddingTarget) else target for target in receiver.targets
        ]

    def remove_fault(self) -> None:
        self.weight_transfer_engine.targets = self._sound_targets
