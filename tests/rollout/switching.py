"""A worker whose engine of weight transfer can be changed, and CUDA's part in it played by a file."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import torch

from rollout.staging import EmbeddingTarget
from rollout.weight_transfer import WorkerExtension, engine_classes


class SwitchingWorkerExtension(WorkerExtension):
    def become(self, transport: str, in_place: bool) -> None:
        """Receive by this transport from now on."""
        before = self.weight_transfer_engine
        self.weight_transfer_engine = engine_classes()[transport](
            before.config, before.vllm_config, before.device, before.model
        )
        before.shutdown()
        self.weight_transfer_engine.in_place = in_place

    def share(self, path: str, uuid: str) -> None:
        """Let a file be the memory that CUDA IPC would share."""
        receiver = self.weight_transfer_engine.receiver
        receiver.gpu_uuid = lambda: uuid
        self.rebuilt: list[list[Any]] = []

        def rebuild(arguments: list[Any]) -> torch.Tensor:
            self.rebuilt.append(arguments)
            (size,) = arguments[1]
            return torch.from_file(path, shared=True, size=size, dtype=arguments[5])

        receiver._rebuild = rebuild

    def listen(self) -> None:
        """Keep what updates say of themselves."""
        self.heard: list[str] = []
        receiver = self.weight_transfer_engine.receiver
        sound = receiver.open

        def open_(update_info: Any) -> Any:
            self.heard.append(digest(update_info))
            return sound(update_info)

        receiver.open = open_

    def what_was_heard(self) -> list[str]:
        return self.heard

    def times_rebuilt(self) -> int:
        return len(self.rebuilt)

    def pack_head(self) -> None:
        """After an update in place. A GPU has no packed copies; on the CPU vLLM forgets this one."""
        for target in self.weight_transfer_engine.targets:
            if isinstance(target, EmbeddingTarget):
                for head in target.heads:
                    target.pack(head)


def digest(info: dict[str, Any]) -> str:
    """Of every value and its type, with bytes told from text; lists and tuples are one to msgpack."""
    return hashlib.sha256(msgspec.msgpack.encode(info, order="sorted")).hexdigest()
