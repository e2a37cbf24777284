"""One engine and one weight sender, as a worker and the learner have them: all that benchmarks know of either."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launch.bench.arrivals import SyncTimes
from rollout.engine import Engine
from rollout.engine_sync import SyncTimings
from shared.config import RolloutConfig, SyncConfig

if TYPE_CHECKING:
    import torch

    from learner.weight_sender import WeightSender

T = TypeVar("T")

# What becomes of running requests.
MODES = {
    "keep": SyncConfig(in_flight="keep"),
    "keep_kv": SyncConfig(in_flight="keep", keep_kv=True),
    "wait": SyncConfig(in_flight="wait"),
    "abort": SyncConfig(in_flight="abort"),
}
TRANSPORTS = ("shm", "ipc", "nccl")
_CLOSE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One send: its times, the bytes of the weights, the calls to the engine, seconds of writing, the engine's own."""

    times: SyncTimes
    nbytes: int
    calls: int
    write_s: float
    timings: SyncTimings


class SyncedEngine:
    """A running engine that a weight sender in this process is connected to, without a network between.

    The engine's event loop has a thread of its own. Methods are for other threads, and raise EngineError or
    WeightSyncError.
    """

    def __init__(
        self,
        folder: Path,
        module: torch.nn.Module,
        *,
        mode: str,
        transport: str,
        dtype: str,
        rollout: RolloutConfig,
        max_model_len: int,
    ) -> None:
        """Start the engine on `folder`, and connect a sender of `module`."""
        import torch

        self._timeout_s = rollout.start_timeout_s + rollout.request_timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-loop", daemon=True)
        self._thread.start()
        self._engine: Engine | None = None
        self._sender: WeightSender | None = None
        self._version = 0
        try:
            self._engine = self.run(
                Engine.start(
                    folder,
                    dtype=dtype,
                    seed=0,
                    rollout=rollout,
                    max_model_len=max_model_len,
                    transport=transport,
                    sync=MODES[mode].model_copy(update={"timeout_s": rollout.request_timeout_s}),
                )
            )
            self._client = _Client(self, self._engine)
            from learner.weight_sender import WeightSender

            self._sender = WeightSender(self._client, module, dtype=getattr(torch, dtype), transport=transport)
            self._sender.connect()
        except BaseException:
            self.close()
            raise

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Await `call` on the engine's loop, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(self._timeout_s)

    def stream(self, prompt_ids: list[int], max_tokens: int, seed: int, request_id: str) -> AsyncIterator[list[int]]:
        """Token ids as they arrive, to be iterated on the engine's loop."""
        assert self._engine is not None
        return self._engine.stream(prompt_ids, max_tokens=max_tokens, seed=seed, request_id=request_id)

    def send(self) -> Sent:
        """Send the module's weights as the next version."""
        assert self._sender is not None
        self._version += 1
        self._client.calls.clear()
        begin = time.monotonic()
        stats = self._sender.send(self._version)
        finish, end = self._client.calls[-1]
        assert self._client.timings is not None
        return Sent(
            times=SyncTimes(begin=begin, finish=finish, end=end),
            nbytes=stats.nbytes,
            calls=stats.calls,
            write_s=stats.write_s,
            timings=self._client.timings,
        )

    def close(self) -> None:
        """End the engine's processes, the sender's segment and the loop."""
        if self._sender is not None:
            self._sender.close()
        if self._engine is not None:
            self.run(self._engine.shutdown())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_TIMEOUT_S)


class _Client:
    """vLLM's weight-sync client. calls: (begin, end) of each since it was cleared, seconds of time.monotonic()."""

    def __init__(self, owner: SyncedEngine, engine: Engine) -> None:
        self._owner = owner
        self._engine = engine
        self.calls: list[tuple[float, float]] = []
        self.timings: SyncTimings | None = None

    @property
    def members(self) -> tuple[Engine]:
        """The engines that are called."""
        return (self._engine,)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call(self._engine.init_weight_transfer(init_info))

    def start_weight_update(self) -> None:
        self._call(self._engine.start_weight_update())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call(self._engine.update_weights(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        assert weight_version is not None
        self.timings = self._call(self._engine.finish_weight_update(int(weight_version)))

    def _call(self, call: Coroutine[Any, Any, T]) -> T:
        begin = time.monotonic()
        result = self._owner.run(call)
        self.calls.append((begin, time.monotonic()))
        return result
