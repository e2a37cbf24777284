"""The inference engine: a thin adapter over vLLM's AsyncLLM. No vLLM type leaves this module and its parts.

Its parts: `engine_vllm` starts vLLM, `engine_requests` samples and scores, `engine_sync` brings new weights in and puts
the engine to sleep, `engine_core` looks after the prompt cache inside vLLM's own process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from rollout import engine_failure, fork_server
from rollout.engine_link import Link
from rollout.engine_processes import kill, with_descendants
from rollout.engine_requests import Requests
from rollout.engine_steps import Step, watch_steps
from rollout.engine_sync import SyncTimings, WeightSync
from rollout.engine_vllm import check_version, import_vllm, on_cpu, set_environment, start_vllm
from rollout.sample import Sample
from shared.config import RolloutConfig, SyncConfig
from shared.episodes import Float32Array, Int32Array
from shared.errors import EngineError, PrimezeroError
from shared.model_folder import check_weights, stop_tokens

_ALIVE_TIMEOUT_S = 60.0
_SHUTDOWN_TIMEOUT_S = 20.0
# An import cannot be ended: it goes on, and no process comes of it.
_GIVE_UP_S = 10.0


class Engine:
    """A running engine with the weights of one version. Made by `start`, ended by `shutdown`.

    Any method raises EngineError once the engine has died, or a weight update has failed in a way that leaves it
    without sound weights: it stays paused then, and its owner starts another one.
    """

    def __init__(
        self,
        llm: Any,
        thread: ThreadPoolExecutor,
        temporary: tempfile.TemporaryDirectory[str],
        *,
        stop_token_ids: list[int],
        max_model_len: int,
        request_timeout_s: float,
        sync: SyncConfig,
        in_place: bool,
        sleep_mode: bool,
    ) -> None:
        self._thread = thread
        self._temporary = temporary
        self._processes = [psutil.Process(p.pid) for p in llm.engine_core.resources.engine_manager.processes]
        self._link = Link(llm)
        self._requests = Requests(
            self._link,
            stop_token_ids=stop_token_ids,
            max_model_len=max_model_len,
            timeout_s=request_timeout_s,
            salted=sync.keep_kv,
        )
        self._sync = WeightSync(self._link, self._requests, sync, in_place=in_place, sleep_mode=sleep_mode)

    @classmethod
    async def start(
        cls,
        model: Path,
        *,
        dtype: str,
        seed: int,
        rollout: RolloutConfig,
        max_model_len: int,
        sync: SyncConfig,
        transport: str,
    ) -> Engine:
        """Load the model folder and start the engine's processes; its weights are version 0.

        transport: the weight transport, resolved (`Config.transport`), whatever `sync` says

        Raises InstallationError for a vLLM we do not know, ModelFolderError when the folder is not usable or vLLM does
        not take it, EngineError when the engine does not come up otherwise, or within `rollout.start_timeout_s`.
        """
        engine_failure.expect()
        check_version()
        check_weights(model)
        stop_token_ids = stop_tokens(model)
        set_environment(rollout)
        fork_server.start()
        # The engine's processes die with the thread that made them (PR_SET_PDEATHSIG): it has to live as long.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        begin = time.monotonic()
        others = {child.pid for child in multiprocessing.active_children()}
        # The import keeps the frame that it happens in alive, and with it what that frame holds.
        thread.submit(import_vllm)
        loop = asyncio.get_running_loop()
        # vLLM leaves sockets, and where it is killed other files. Short, for the sockets.
        temporary = tempfile.TemporaryDirectory(prefix="e-", ignore_cleanup_errors=True)
        os.environ["VLLM_RPC_BASE_PATH"] = temporary.name
        given_up = threading.Event()
        context = partial(_context, given_up, temporary.name)
        starting = loop.run_in_executor(
            thread, start_vllm, model, dtype, seed, rollout, max_model_len, transport, context
        )
        try:
            llm = await asyncio.wait_for(asyncio.shield(starting), rollout.start_timeout_s)
        except BaseException as error:
            given_up.set()
            await _abandon_start(starting, thread, others)
            temporary.cleanup()
            if isinstance(error, TimeoutError):
                raise EngineError(
                    f"the engine did not start within rollout.start_timeout_s = {rollout.start_timeout_s:g} s"
                ) from error
            if not isinstance(error, Exception) or isinstance(error, PrimezeroError):
                raise
            raise engine_failure.refusal(model, error) from error
        engine = cls(
            llm,
            thread,
            temporary,
            stop_token_ids=stop_token_ids,
            max_model_len=max_model_len,
            request_timeout_s=rollout.request_timeout_s,
            sync=sync,
            in_place=transport != "shm" and not on_cpu(),
            sleep_mode=rollout.colocation == "alternate" and not on_cpu(),
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
        return self._requests.version

    async def generate(
        self,
        prompt_ids: Sequence[int] | Int32Array,
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        request_id: str,
    ) -> list[Sample]:
        """Sample `n` completions of one prompt; temperature 0 is greedy, where all n are the same.

        Sample i draws from seed + i (the lower 62 bits of `seed`). Log-probabilities are after
        temperature; greedy ones are at temperature 1. A sample that a weight update aborts (`sync.in_flight`) goes on
        from where it was: it is neither restarted nor cut, and draws on from `continuation_seed`. Raises EngineError
        when prompt and response do not fit the engine's context, or the samples are not done within
        `rollout.request_timeout_s`, not counting the time that the engine is paused or asleep.
        """
        return await self._requests.generate(
            prompt_ids, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed, request_id=request_id
        )

    def stream(
        self, prompt_ids: Sequence[int], *, max_tokens: int, seed: int, request_id: str
    ) -> AsyncIterator[list[int]]:
        """Sample `max_tokens` tokens, past any end, yielding new ids as they arrive; fewer if they are aborted.

        For measurements: without a time limit, and without versions.
        """
        return self._requests.stream(prompt_ids, max_tokens=max_tokens, seed=seed, request_id=request_id)

    async def plain(
        self,
        prompt_ids: Sequence[int] | Int32Array,
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        request_id: str,
    ) -> int:
        """Have vLLM sample what `generate` would, and do nothing with it; its number of tokens.

        For measurements: without a time limit, and not to be aborted by a weight update.
        """
        return await self._requests.plain(
            prompt_ids, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed, request_id=request_id
        )

    async def forget_prompts(self) -> None:
        """Empty the prompt cache; EngineError while requests run. For measurements."""
        if not await self._link.call(
            "emptying the prompt cache", self._link.llm.reset_prefix_cache(), _ALIVE_TIMEOUT_S
        ):
            raise EngineError("the prompt cache cannot be emptied while requests run")

    def watch_steps(self) -> list[Step]:
        """From now on, every step that sampled something, as EngineCore's output arrives. For measurements."""
        return watch_steps(self._link.llm)

    async def score(self, token_ids: Sequence[int], request_id: str) -> Float32Array:
        """Log-probabilities, at temperature 1, of token_ids[1:], each given those before: float32 [tokens - 1].

        Computed afresh, without cached prefixes, and by one version, which is the one now live or a later one. Raises
        EngineError as `generate` does.
        """
        return await self._requests.score(token_ids, request_id)

    async def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Prepare for updates from a learner; WeightSyncError if it speaks another format."""
        await self._sync.init(init_info)

    async def forget_learner(self) -> None:
        """Let go of what is held of a learner that has left: its buffer's memory, or a group with it."""
        await self._sync.forget_learner()

    async def start_weight_update(self) -> None:
        """Begin an update; one that was begun before and not finished is forgotten.

        In place (`ipc`, and `nccl` on a GPU), the engine is paused from here to `finish_weight_update`: whatever goes
        wrong between, a second beginning and a silence of `sync.timeout_s` included, makes it unusable.
        """
        await self._sync.start()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and check the weights described by `update_info`, and stage them while generation goes on.

        Raises WeightSyncError, with the live weights untouched, when they are not exactly what the
        model needs. In place, they are written into the live weights.
        """
        await self._sync.update(update_info)

    async def finish_weight_update(self, version: int) -> SyncTimings:
        """Make the received weights live as `version`; generation goes on with them, also when it was asleep.

        What becomes of running requests is up to `sync.in_flight`: frozen, and prefilled again by the new weights, so
        that every span's log-probabilities are exactly its version's (`keep`); waited for (`wait`); aborted, and gone
        on with (`abort`). Under `sync.keep_kv` they keep the attention cache of the older weights: what they sample on
        it is marked `mixed_kv`, to the end of each version even if the cache is computed anew meanwhile. Requests that
        are not running never find cache of older weights.

        WeightSyncError with nothing changed when `version` is not what was staged, or waiting takes too long; after
        any other failure, and any in place, the engine stays paused and every later call fails.
        """
        return await self._sync.finish(version)

    async def sleep(self, *, for_update: bool = False) -> None:
        """Stop generating, and give the machine to the learner: the cores, or, under `alternate`, the GPU's memory.

        Running requests are frozen (under `sync.in_flight` = wait, waited for); new ones queue. A weight update may
        come meanwhile, and ends the sleep; with `for_update` nothing else does, and the weights that it brings are not
        kept. EngineError once the engine is unusable; WeightSyncError, with generation
        going on, when waiting takes too long, and with the engine unusable after any other failure.
        """
        await self._sync.sleep(for_update=for_update)

    async def wake(self) -> None:
        """Go on generating after `sleep`, with everything that was running or has queued; awake, do nothing."""
        await self._sync.wake()

    async def check_alive(self) -> None:
        """A round trip through the engine's processes; EngineError when one is gone or silent.

        Behind a call of a weight update, of sleep or waking up, it would wait for that one's end: that has a time limit
        of its own, and it is enough that the processes are there.
        """
        self._sync.check()
        for process in self._processes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise EngineError(f"an engine process (pid {process.pid}) is gone")
        if self._sync.occupies_engine:
            return
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
        self._temporary.cleanup()
        engine_failure.forget()
        self._thread.shutdown()


def _context(given_up: threading.Event, temporary: str) -> Any:
    """What makes the engine's processes, with their temporary files there; none for a start that is given up."""
    if given_up.is_set():
        raise EngineError("the start was given up")
    return fork_server.context(TMPDIR=temporary)


async def _abandon_start(starting: asyncio.Future[Any], thread: ThreadPoolExecutor, others: set[int | None]) -> None:
    """End a start that failed or takes too long: without its processes vLLM gives up by itself."""

    def end() -> None:
        deadline = time.monotonic() + _GIVE_UP_S
        while not starting.done() and time.monotonic() < deadline:
            for child in multiprocessing.active_children():
                if child.name.startswith("EngineCore") and child.pid not in others:
                    kill(with_descendants([psutil.Process(child.pid)]))
            time.sleep(0.05)

    if not starting.done():
        await asyncio.get_running_loop().run_in_executor(None, end)
        starting.add_done_callback(lambda done: done.cancelled() or done.exception())
    thread.shutdown(wait=False, cancel_futures=True)
