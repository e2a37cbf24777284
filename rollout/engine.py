"""The inference engine: a thin adapter over vLLM's AsyncLLM. No vLLM type leaves this module and its parts.

Its parts: `engine_vllm` starts vLLM, `engine_requests` samples and scores, `engine_sync` brings new weights in.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from rollout.engine_link import Link
from rollout.engine_processes import kill, with_descendants
from rollout.engine_requests import Requests
from rollout.engine_sync import SyncTimings, WeightSync
from rollout.engine_vllm import import_vllm, set_environment, start_vllm
from rollout.sample import Sample
from shared.config import RolloutConfig
from shared.episodes import Float32Array
from shared.errors import EngineError, PrimezeroError
from shared.model_folder import check_weights, stop_tokens

_ALIVE_TIMEOUT_S = 60.0
_SHUTDOWN_TIMEOUT_S = 20.0


class Engine:
    """A running engine with the weights of one version. Made by `start`, ended by `shutdown`.

    Any method raises EngineError once the engine has died or a weight swap has failed.
    """

    def __init__(
        self,
        llm: Any,
        thread: ThreadPoolExecutor,
        *,
        stop_token_ids: list[int],
        max_model_len: int,
        request_timeout_s: float,
    ) -> None:
        self._thread = thread
        self._processes = [psutil.Process(p.pid) for p in llm.engine_core.resources.engine_manager.processes]
        self._link = Link(llm)
        self._requests = Requests(
            self._link, stop_token_ids=stop_token_ids, max_model_len=max_model_len, timeout_s=request_timeout_s
        )
        self._sync = WeightSync(self._link, timeout_s=request_timeout_s)

    @classmethod
    async def start(
        cls,
        model: Path,
        *,
        dtype: str,
        seed: int,
        rollout: RolloutConfig,
        max_model_len: int,
        transport: str = "shm",
    ) -> Engine:
        """Load the model folder and start the engine's processes; its weights are version 0.

        Raises ModelFolderError when the folder is not usable, EngineError when the engine does not
        come up within `rollout.start_timeout_s`.
        """
        check_weights(model)
        stop_token_ids = stop_tokens(model)
        set_environment(rollout)
        # The engine's processes die with the thread that made them (PR_SET_PDEATHSIG): it has to live as long.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        begin = time.monotonic()
        others = {child.pid for child in multiprocessing.active_children()}
        # The import keeps the frame that it happens in alive, and with it what that frame holds.
        thread.submit(import_vllm)
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(thread, start_vllm, model, dtype, seed, rollout, max_model_len, transport)
        try:
            llm = await asyncio.wait_for(asyncio.shield(starting), rollout.start_timeout_s)
        except BaseException as error:
            await _abandon_start(starting, thread, others)
            if isinstance(error, TimeoutError):
                raise EngineError(
                    f"the engine did not start within rollout.start_timeout_s = {rollout.start_timeout_s:g} s"
                ) from error
            if not isinstance(error, Exception) or isinstance(error, PrimezeroError):
                raise
            raise EngineError(f"the engine did not start with {model}: {error}; its log above says more") from error
        engine = cls(
            llm,
            thread,
            stop_token_ids=stop_token_ids,
            max_model_len=max_model_len,
            request_timeout_s=rollout.request_timeout_s,
        )
        left_s = rollout.start_timeout_s - (time.monotonic() - begin)
        try:
            await engine._link.call("naming the weights", llm.update_weight_version("0"), max(left_s, 1.0))
        except BaseException:
            await engine.shutdown()
            raise
        return engine

    @property
    def version(self) -> int:
        """The weight version that new tokens are sampled from."""
        return self._sync.version

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        request_id: str,
    ) -> list[Sample]:
        """Sample `n` completions of one prompt; temperature 0 is greedy, where all n are the same.

        Sample i draws from seed + i (the lower 62 bits of `seed`). Log-probabilities are after
        temperature; greedy ones are at temperature 1. Raises EngineError when prompt and response do not
        fit the engine's context, or the samples are not done within `rollout.request_timeout_s`.
        """
        return await self._requests.generate(
            prompt_ids, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed, request_id=request_id
        )

    async def score(self, token_ids: Sequence[int], request_id: str) -> Float32Array:
        """Log-probabilities, at temperature 1, of token_ids[1:], each given those before: float32 [tokens - 1].

        Computed afresh, without cached prefixes. Raises EngineError as `generate` does.
        """
        return await self._requests.score(token_ids, request_id)

    async def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Prepare for updates from a learner; WeightSyncError if it speaks another format."""
        await self._sync.init(init_info)

    async def start_weight_update(self) -> None:
        """Begin an update; one that was begun before and not finished is forgotten."""
        await self._sync.start()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive, check and stage the weights described by `update_info`, while generation goes on.

        Raises WeightSyncError, with the live weights untouched, when they are not exactly what the
        model needs.
        """
        await self._sync.update(update_info)

    async def finish_weight_update(self, version: int) -> SyncTimings:
        """Swap the staged weights in as `version`; running requests go on with them.

        Their attention cache is recomputed, so every span's log-probabilities are exactly its
        version's. WeightSyncError with nothing changed when `version` is not what was staged; after
        any other failure the engine stays paused and every later call fails.
        """
        return await self._sync.finish(version)

    async def check_alive(self) -> None:
        """A round trip through the engine's processes; EngineError when one is gone or silent."""
        self._link.check()
        for process in self._processes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise EngineError(f"an engine process (pid {process.pid}) is gone")
        check = self._link.llm.collective_rpc("check_health")
        await self._link.call("check_health", check, _ALIVE_TIMEOUT_S)

    async def shutdown(self) -> None:
        """End the engine and its processes. Requests still running fail. May be called twice."""
        self._link.give_up("it was shut down")
        llm = self._link.llm
        idle = llm is not None and llm.get_num_unfinished_requests() == 0
        if idle and llm.output_handler is not None:  # it is there from the first request on
            # Nobody waits for output any more; left running, it would log the end of the engine as a failure.
            llm.output_handler.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._end)

    def _end(self) -> None:
        processes = with_descendants(self._processes)
        if self._link.llm is not None:
            self._link.llm.shutdown(timeout=_SHUTDOWN_TIMEOUT_S)
        self._link.llm = None
        kill(processes)
        self._thread.shutdown()


async def _abandon_start(starting: asyncio.Future[Any], thread: ThreadPoolExecutor, others: set[int | None]) -> None:
    """End a start that failed or takes too long: without its processes vLLM gives up by itself."""

    def end() -> None:
        for child in multiprocessing.active_children():
            if child.name.startswith("EngineCore") and child.pid not in others:
                kill(with_descendants([psutil.Process(child.pid)]))

    if not starting.done():
        await asyncio.get_running_loop().run_in_executor(None, end)
        starting.add_done_callback(lambda done: done.cancelled() or done.exception())
    thread.shutdown(wait=False, cancel_futures=True)
