"""Sending the learner's weights into running engines, through vLLM's trainer protocol.

The `shm` transport: all parameters in one shared-memory segment, written anew for each version; the
engines read it and check it against a manifest (shared/weight_manifest.py). vLLM is imported only
when a sender is made: it costs seconds and hundreds of megabytes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import msgspec
import torch

from learner.weight_segment import WeightSegment
from learner.weights import WeightSource as Source
from shared.errors import WeightSyncError
from shared.weight_manifest import FORMAT

TRANSPORT = "shm"


class WeightSyncClient(Protocol):
    """The engines' side of a weight update: vLLM's `VLLMWeightSyncClient`, structurally."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class SendStats:
    """One finished send: bytes of the weights, and seconds of each phase.

    write_s: casting and writing the segment; start_s, update_s, finish_s: the engines' three calls,
    of which only the last holds up generation
    """

    nbytes: int
    write_s: float
    start_s: float
    update_s: float
    finish_s: float


class WeightSender:
    """Sends the parameters of one module, version by version. Rank 0 sends; on other ranks `send` does nothing.

    point_to_point: whether a send concerns nobody but the client's present members
    """

    point_to_point = True

    def __init__(
        self,
        client: WeightSyncClient,
        source: torch.nn.Module | Source,
        *,
        dtype: torch.dtype,
        transport: str = TRANSPORT,
        rank: int = 0,
    ) -> None:
        """dtype: what the engines compute in; parameters are cast to it."""
        if transport != TRANSPORT:
            raise WeightSyncError(f"unknown weight transport {transport!r}: only {TRANSPORT!r} is there")
        self._client = client
        self._source = source
        self._dtype = dtype
        self._rank = rank
        self._engine: Any = None

    def connect(self) -> None:
        """Shake hands with the engines; anew when there are others.

        Raises WeightSyncError when the handshake fails, or there is no room in shared memory.
        """
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        vllm = _vllm_classes()
        self.close()
        with _as_sync_error("the weight-sync handshake failed"):
            self._engine = WeightTransferTrainerFactory.trainer_init(
                vllm.init_info(rank=self._rank), client=self._client, source=vllm.source(self._source, self._dtype)
            )

    def send(self, version: int) -> SendStats:
        """Put the module's present weights into the engines as `version`.

        Raises WeightSyncError when a weight is NaN or infinite in the wire dtype, before the engines
        hear of anything, or when an engine refuses or fails.
        """
        with _as_sync_error(f"sending weight version {version} failed"):
            self._engine.version = version
            self._engine.send_weights()
        return self._engine.stats

    def close(self) -> None:
        """Remove the segment. Nothing can be sent afterwards, but after another `connect`."""
        if self._engine is not None:
            self._engine.shutdown()


@contextmanager
def _as_sync_error(what: str) -> Iterator[None]:
    try:
        yield
    except WeightSyncError:
        raise
    except Exception as error:
        raise WeightSyncError(f"{what}: {error}") from error


def _timed(call: Callable[[], object]) -> float:
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


@functools.cache
def _vllm_classes() -> SimpleNamespace:
    """Our subclasses of vLLM's trainer-side classes, registered with vLLM."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.base import (
        ParamMeta,
        TrainerInitInfo,
        TrainerWeightTransferEngine,
        WeightSource,
    )

    @dataclass
    class ShmTrainerInitInfo(TrainerInitInfo):
        backend: ClassVar[str] = TRANSPORT

    class ModuleSource(WeightSource):
        """A module's parameters in layer order, tied ones once; cast to the wire dtype by the segment."""

        def __init__(self, source: torch.nn.Module | Source, dtype: torch.dtype) -> None:
            self.dtype = dtype
            self._source = source

        def metadata(self) -> list[ParamMeta]:
            if isinstance(self._source, torch.nn.Module):
                return [ParamMeta(name, self.dtype, tuple(p.shape)) for name, p in self._source.named_parameters()]
            return [ParamMeta(name, self.dtype, shape) for name, shape in self._source.shapes.items()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            if isinstance(self._source, torch.nn.Module):
                for name, parameter in self._source.named_parameters():
                    yield name, parameter.detach()
            else:
                yield from self._source

    class ShmTrainerEngine(TrainerWeightTransferEngine[ShmTrainerInitInfo]):
        """Writes the segment and drives the four calls.

        vLLM's `send_weights` takes no version: `version` is set before, and `stats` read after.
        """

        init_info_cls = ShmTrainerInitInfo
        version = 0
        stats = SendStats(0, 0.0, 0.0, 0.0, 0.0)

        def __init__(self, *, client: WeightSyncClient, source: ModuleSource, is_sender: bool) -> None:
            super().__init__(client=client, source=source, is_sender=is_sender)
            self._weights = source
            self._segment: WeightSegment | None = None
            if is_sender:
                self._segment = WeightSegment({meta.name: meta.shape for meta in source.metadata()}, source.dtype)

        @classmethod
        def trainer_init(
            cls, init_info: ShmTrainerInitInfo, *, client: WeightSyncClient, source: ModuleSource
        ) -> ShmTrainerEngine:
            engine = cls(client=client, source=source, is_sender=init_info.is_sender)
            if init_info.is_sender:
                try:
                    client.init_weight_transfer_engine({"format": FORMAT})
                except BaseException:
                    engine.shutdown()
                    raise
            return engine

        def send_weights(self) -> None:
            if not self.is_sender:
                return
            if self._segment is None:
                raise WeightSyncError("the weight sender is closed")
            begin = time.monotonic()
            manifest = self._segment.write(self._weights, self.version)
            update_info = msgspec.to_builtins(manifest)
            self.stats = SendStats(
                nbytes=self._segment.nbytes,
                write_s=time.monotonic() - begin,
                start_s=_timed(self.client.start_weight_update),
                update_s=_timed(lambda: self.client.update_weights(update_info)),
                finish_s=_timed(lambda: self.client.finish_weight_update(weight_version=str(self.version))),
            )

        def shutdown(self) -> None:
            if self._segment is not None:
                self._segment.close()
                self._segment = None

    WeightTransferTrainerFactory.register_engine(TRANSPORT, ShmTrainerEngine)
    return SimpleNamespace(init_info=ShmTrainerInitInfo, source=ModuleSource)
