"""What the transports have in common: the engines' side as a client, and what a send is measured by."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from shared.weight_wire import Sums


class WeightSyncClient(Protocol):
    """The engines' side of a weight update: vLLM's `VLLMWeightSyncClient`, and how many engines there are.

    Each call goes to all members, has a time limit of its own, and raises when one refuses, fails or is late.
    """

    @property
    def members(self) -> Sequence[object]:
        """The engines that the calls now go to."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The handshake. `rank_offset`, where there is one, is the first member's; the others' follow on it."""

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class SendStats:
    """One finished send: bytes of the weights, and seconds of each phase.

    write_s: checking the weights, and what is cast and written before the engines hear of them
    start_s, update_s, finish_s: the engines' calls; ipc and nccl write during the updates
    calls: how many calls that took
    """

    nbytes: int
    write_s: float
    start_s: float
    update_s: float
    finish_s: float
    calls: int


@dataclass(frozen=True)
class Settings:
    """How a transport sends.

    dtype: what the engines compute in, and what travels
    buffer_bytes: what is sent at once, where the transport packs
    timeout_s: limit for each wait
    address: of this machine, where the engines can reach it
    """

    dtype: torch.dtype
    buffer_bytes: int
    timeout_s: float
    address: str


class Transport(ABC):
    """One way for weights to reach the engines.

    point_to_point: whether a send may go to some of the members only; otherwise all have to take part
    sums: of each parameter by name, `content_sums` of what was last sent; there once the sending is over
    """

    point_to_point: ClassVar[bool]
    sums: Mapping[str, Sums]

    @abstractmethod
    def connect(self) -> None:
        """The handshake with the members there are."""

    @abstractmethod
    def begin(self, version: int) -> Callable[[], SendStats]:
        """Take the source's present weights, to be sent as `version`: afterwards they may change.

        What is returned puts them into the engines, on any thread, before the transport is asked for anything else.
        """

    def send(self, version: int) -> SendStats:
        """Put the source's present weights into the engines as `version`."""
        return self.begin(version)()

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""


class Update:
    """The calls of one send, timed and counted."""

    def __init__(self, client: WeightSyncClient, version: int) -> None:
        self._client = client
        self._version = version
        self._seconds = dict.fromkeys(("write", "start", "update", "finish"), 0.0)
        self._calls = 0

    def write(self, work: Callable[[], Any]) -> Any:
        """Do what is done before the engines hear of anything."""
        return self._timed("write", work)

    def start(self) -> None:
        """Have the engines begin."""
        self._call("start", self._client.start_weight_update)

    def update(self, update_info: dict[str, Any]) -> None:
        """Have the engines receive."""
        self._call("update", lambda: self._client.update_weights(update_info))

    def finish(self, nbytes: int) -> SendStats:
        """Have the engines make the weights live."""
        self._call("finish", lambda: self._client.finish_weight_update(weight_version=str(self._version)))
        seconds = self._seconds
        return SendStats(nbytes, seconds["write"], seconds["start"], seconds["update"], seconds["finish"], self._calls)

    def _call(self, phase: str, call: Callable[[], Any]) -> None:
        self._calls += 1
        self._timed(phase, call)

    def _timed(self, phase: str, work: Callable[[], Any]) -> Any:
        begin = time.monotonic()
        result = work()
        self._seconds[phase] += time.monotonic() - begin
        return result
