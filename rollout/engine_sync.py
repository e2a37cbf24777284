"""Weight updates of a running engine, and its sleep: everything that stops generation and lets it go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from rollout.engine_link import Link
from rollout.engine_requests import Requests
from rollout.engine_vllm import init_request, update_request
from shared.config import SyncConfig
from shared.errors import EngineError, WeightSyncError
from shared.weight_wire import LiveWeights

_POLL_S = 0.01
# Of a call's time limit, what running requests may take to finish; the rest is for the swap and the answer.
_SHARE_OF_WAITING = 0.8

PauseMode = Literal["keep", "wait", "abort"]


@dataclass(frozen=True, slots=True)
class SyncTimings:
    """One weight swap: seconds from the pause to resuming, how much of that the swap itself took, and what is live."""

    pause_s: float
    swap_s: float
    live: tuple[LiveWeights, ...]


class WeightSync:
    """What the `Engine` methods of weight sync and sleep do, one at a time.

    in_place: the transport writes into the live weights, so that generation stands still from `start` to `finish`,
        and a failure in between leaves weights that nothing can be done with
    sleep_mode: sleeping also gives back the memory that the engine uses
    """

    def __init__(self, link: Link, requests: Requests, sync: SyncConfig, *, in_place: bool, sleep_mode: bool) -> None:
        self._link = link
        self._requests = requests
        self.config = sync
        self.in_place = in_place
        self.sleep_mode = sleep_mode
        self._turn = asyncio.Lock()
        self._received = False
        self._version: int | None = None
        # In place: when the update that is open was last heard of, and when generation was paused for it.
        self._heard_at: float | None = None
        self._paused_at = 0.0
        self._asleep = False
        self._weights_awake = True
        self._weights_kept = True
        self._calls = 0

    @property
    def occupies_engine(self) -> bool:
        """Whether a call is under way that all later ones queue behind. It ends within `sync.timeout_s`."""
        return self._calls > 0

    def check(self) -> None:
        """EngineError once the engine is unusable; an update in place that was left open makes it so."""
        if self._heard_at is not None and time.monotonic() - self._heard_at > self.config.timeout_s:
            self._link.give_up(f"a weight update was left open for longer than {self.config.timeout_s:g} s")
        self._link.check()

    async def init(self, init_info: dict[str, Any]) -> None:
        """See `Engine.init_weight_transfer`."""
        async with self._one_step("the weight-sync handshake failed"):
            await self._call("the handshake", self._link.llm.init_weight_transfer_engine(init_request(init_info)))

    async def forget_learner(self) -> None:
        """See `Engine.forget_learner`. An update in place that it left open cannot be given up: the next one fails."""
        async with self._one_step("letting go of the learner failed"):
            if self._heard_at is None:
                self._received, self._version = False, None
                await self._call("letting go", self._link.llm.collective_rpc("primezero_forget_learner"))

    async def start(self) -> None:
        """See `Engine.start_weight_update`."""
        llm = self._link.llm
        async with self._one_step("the weight update could not begin"):
            if not self.in_place:
                await self._discard()
                await self._call("start_weight_update", llm.start_weight_update())
                return
            if self._heard_at is None:
                self._paused_at = time.monotonic()
                await self._pause(self.config.in_flight)
            async with self._or_unusable("a weight update"):
                if self._heard_at is not None:
                    raise EngineError("another one began before it was finished")
                self._heard_at = time.monotonic()
                self._received, self._version = False, None
                if self._asleep and self.sleep_mode:
                    self._weights_awake = True
                    await self._call("waking the weights", llm.wake_up(["weights"]))
                await self._call("start_weight_update", llm.start_weight_update())

    async def update(self, update_info: dict[str, Any]) -> None:
        """See `Engine.update_weights`."""
        llm = self._link.llm
        async with self._one_step("the weight update was refused"):
            if not self.in_place:
                try:
                    await self._call("update_weights", llm.update_weights(update_request(update_info)))
                    await self._link.call("staging the weights", self._staging_done(), self.config.timeout_s)
                except EngineError:
                    if not llm.errored:
                        await self._discard()
                    raise
            else:
                if self._heard_at is None:
                    raise EngineError("no update was begun")
                self._heard_at = time.monotonic()
                async with self._or_unusable("a weight update"):
                    await self._call("update_weights", llm.update_weights(update_request(update_info)))
                self._heard_at = time.monotonic()
            self._received = True
            self._version = int(update_info["version"]) if "version" in update_info else None

    async def finish(self, version: int) -> SyncTimings:
        """See `Engine.finish_weight_update`."""
        async with self._one_step("the weight update could not be finished"):
            if self.in_place:
                return await self._finish_in_place(version)
            if not self._received or self._version not in (None, version):
                staged = self._version if self._received else None
                raise WeightSyncError(f"asked to finish weight version {version}, but {staged} is staged")
            self._received = False
            begin = time.monotonic()
            await self._pause(self.config.in_flight)
            return await self._swap(version, begin)

    async def sleep(self, *, for_update: bool = False) -> None:
        """See `Engine.sleep`."""
        async with self._one_step("the engine could not go to sleep"):
            if self._heard_at is not None:
                raise EngineError("a weight update is open")
            if self._asleep:
                return
            # Frozen, or, where a sample is to be of one version only, finished before.
            await self._pause("wait" if self.config.in_flight == "wait" else "keep")
            if self.sleep_mode:
                async with self._or_unusable("going to sleep"):
                    # Copied to the host's memory and back, they would be overwritten at once.
                    level = 2 if for_update and self.in_place else 1
                    await self._call("going to sleep", self._link.llm.sleep(level=level, mode="keep"))
                self._weights_awake, self._weights_kept = False, level == 1
            self._asleep = True

    async def wake(self) -> None:
        """See `Engine.wake`."""
        async with self._one_step("the engine could not wake up"):
            if self._heard_at is not None:
                raise EngineError("a weight update is open, and ends with waking up")
            if not self._weights_kept:
                raise EngineError("it sleeps until a weight update, and has no weights before")
            if self._asleep:
                async with self._or_unusable("waking up"):
                    await self._resume()

    async def _finish_in_place(self, version: int) -> SyncTimings:
        if self._heard_at is None:
            raise WeightSyncError(f"asked to finish weight version {version}, but no update was begun")
        async with self._or_unusable("a weight update"):
            if not self._received or self._version not in (None, version):
                received = self._version if self._received else None
                raise EngineError(f"asked to finish weight version {version}, but {received} was received")
        self._heard_at = time.monotonic()
        timings = await self._swap(version, self._paused_at)
        self._heard_at, self._weights_kept = None, True
        return timings

    async def _swap(self, version: int, paused_at: float) -> SyncTimings:
        """Make the new weights live, generation being paused, and let it go on."""
        llm = self._link.llm
        async with self._or_unusable(f"swapping in weight version {version}"):
            kept: list[str] = []
            label = self._requests.next_label
            if self.config.keep_kv:
                change = llm.engine_core.call_utility_async("primezero_change_salt", label)
                kept = await self._call("changing the cache salt", change)
            begin = time.monotonic()
            await self._call("the swap", llm.finish_weight_update(label))
            swapped = time.monotonic()
            (live,) = await self._call("naming the live weights", llm.collective_rpc("primezero_live_weights"))
            self._requests.weights_changed(version, kept)
            await self._resume()
        return SyncTimings(pause_s=time.monotonic() - paused_at, swap_s=swapped - begin, live=_read(live))

    async def _pause(self, mode: PauseMode) -> None:
        """Stop generation, and clear the attention cache unless it is kept.

        EngineError, with generation going on, when `wait` takes too long.
        """
        if self._asleep:
            return
        llm, clear = self._link.llm, not self.config.keep_kv
        limit_s = self.config.timeout_s * (_SHARE_OF_WAITING if mode == "wait" else 1)
        async with self._or_unusable("pausing"):
            try:
                async with asyncio.timeout(limit_s):
                    # What AsyncLLM.pause_generation does, without its wait of 20 ms for nothing that we need.
                    await llm.engine_core.pause_scheduler_async(mode=mode, clear_cache=clear)
                paused = True
            except TimeoutError as error:
                if mode != "wait":
                    raise EngineError(f"the engine did not pause within {limit_s:g} s") from error
                await self._call("going on", llm.resume_generation())
                paused = False
            if paused and clear and not await self._call("clearing the cache", llm.reset_prefix_cache()):
                raise EngineError("the engine did not clear its prefix cache")
        if paused:
            self._requests.deadlines.stop()
        else:
            raise EngineError(
                f"requests were still running after {limit_s:g} s: raise sync.timeout_s, or set sync.in_flight to keep "
                "or abort"
            )

    async def _resume(self) -> None:
        llm = self._link.llm
        if self._asleep and self.sleep_mode:
            tags = ["kv_cache"] if self._weights_awake else None
            if not await self._call("waking up", llm.wake_up(tags)):
                raise EngineError("the engine did not wake up")
            self._weights_awake = True
        await self._call("resuming", llm.resume_generation())
        self._asleep = False
        self._requests.deadlines.go()

    async def _call(self, what: str, call: Any) -> Any:
        self._calls += 1
        try:
            return await self._link.call(what, call, self.config.timeout_s)
        finally:
            self._calls -= 1

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
        self._received, self._version = False, None
        await self._call("discarding an update", self._link.llm.collective_rpc("primezero_discard_update"))

    @asynccontextmanager
    async def _one_step(self, what: str) -> AsyncIterator[None]:
        """One call of the learner; what it raises of the engine's is a WeightSyncError, with `what` in front."""
        self.check()
        async with self._turn:
            self.check()
            try:
                yield
            except EngineError as error:
                raise WeightSyncError(f"{what}: {error}") from error

    @asynccontextmanager
    async def _or_unusable(self, what: str) -> AsyncIterator[None]:
        """What fails in here leaves the engine paused, for good."""
        try:
            yield
        except BaseException as error:
            reason = f"{what} failed: {error!r}"
            self._link.give_up(reason)
            if not isinstance(error, Exception):
                raise
            raise WeightSyncError(f"{reason}; the engine stays paused and must be restarted") from error


def _read(live: Any) -> tuple[LiveWeights, ...]:
    return msgspec.convert(live, tuple[LiveWeights, ...])
