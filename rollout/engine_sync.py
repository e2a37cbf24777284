"""Weight updates of a running engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rollout.engine_link import Link
from rollout.engine_vllm import init_request, update_request
from shared.errors import EngineError, WeightSyncError

_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class SyncTimings:
    """One weight swap: seconds that generation stood still, and how much of that the swap itself took."""

    pause_s: float
    swap_s: float


class WeightSync:
    """What the `Engine` methods of weight sync do; `timeout_s` is the limit for each call to vLLM."""

    def __init__(self, link: Link, *, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self.version = 0
        self._staged_version: int | None = None

    async def init(self, init_info: dict[str, Any]) -> None:
        """See `Engine.init_weight_transfer`."""
        async with self._sync_errors("the weight-sync handshake failed"):
            await self._call("the handshake", self._link.llm.init_weight_transfer_engine(init_request(init_info)))

    async def start(self) -> None:
        """See `Engine.start_weight_update`."""
        async with self._sync_errors("the weight update could not begin"):
            await self._discard()
            await self._call("start_weight_update", self._link.llm.start_weight_update())

    async def update(self, update_info: dict[str, Any]) -> None:
        """See `Engine.update_weights`."""
        llm = self._link.llm
        async with self._sync_errors("the weight update was refused"):
            try:
                await self._call("update_weights", llm.update_weights(update_request(update_info)))
                await self._call("staging the weights", self._staging_done())
            except EngineError:
                if not llm.errored:
                    await self._discard()
                raise
        self._staged_version = int(update_info["version"])

    async def finish(self, version: int) -> SyncTimings:
        """See `Engine.finish_weight_update`."""
        self._link.check()
        if self._staged_version != version:
            raise WeightSyncError(f"asked to finish weight version {version}, but {self._staged_version} is staged")
        self._staged_version = None
        llm = self._link.llm
        begin = time.monotonic()
        try:
            await self._call("pausing", llm.pause_generation(mode="keep", clear_cache=True))
            if not await self._call("clearing the cache", llm.reset_prefix_cache()):
                raise EngineError("the engine did not clear its prefix cache")
            paused = time.monotonic()
            await self._call("the swap", llm.finish_weight_update(str(version)))
            swapped = time.monotonic()
            self.version = version
            await self._call("resuming", llm.resume_generation())
        except BaseException as error:
            reason = f"swapping in weight version {version} failed: {error!r}"
            self._link.give_up(reason)
            if not isinstance(error, Exception):
                raise
            raise WeightSyncError(f"{reason}; the engine stays paused and must be restarted") from error
        return SyncTimings(pause_s=time.monotonic() - begin, swap_s=swapped - paused)

    async def _call(self, what: str, call: Any) -> Any:
        return await self._link.call(what, call, self._timeout_s)

    async def _staging_done(self) -> None:
        # An RPC that waits would hold up generation: the engine does nothing else meanwhile.
        while True:
            (state,) = await self._link.llm.collective_rpc("primezero_staging")
            if state["done"]:
                break
            await asyncio.sleep(_POLL_S)
        if state["error"] is not None:
            raise EngineError(state["error"])

    async def _discard(self) -> None:
        self._staged_version = None
        await self._call("discarding an update", self._link.llm.collective_rpc("primezero_discard_update"))

    @asynccontextmanager
    async def _sync_errors(self, what: str) -> AsyncIterator[None]:
        self._link.check()
        try:
            yield
        except EngineError as error:
            raise WeightSyncError(f"{what}: {error}") from error
