"""The inference engine: a thin adapter over vLLM's AsyncLLM. No vLLM type leaves this module."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from rollout.engine_processes import kill, with_descendants
from rollout.sample import Sample, chosen_logprobs, sample_of
from rollout.weight_transfer import BACKENDS, WORKER_EXTENSION
from shared.config import RolloutConfig
from shared.episodes import Float32Array
from shared.errors import EngineError, PrimezeroError, WeightSyncError
from shared.model_folder import check_weights, stop_tokens

T = TypeVar("T")

_ALIVE_TIMEOUT_S = 60.0
_SHUTDOWN_TIMEOUT_S = 20.0
_POLL_S = 0.01
_SEED_BITS = 62
_STEP_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class SyncTimings:
    """One weight swap: seconds that generation stood still, and how much of that the swap itself took."""

    pause_s: float
    swap_s: float


class Engine:
    """A running engine with the weights of one version. Made by `start`, ended by `shutdown`.

    Any method raises EngineError once the engine has died or a weight swap has failed.
    """

    def __init__(self, llm: Any, thread: ThreadPoolExecutor, stop_token_ids: list[int], max_model_len: int) -> None:
        self._llm = llm
        self._thread = thread
        self._processes = [psutil.Process(p.pid) for p in llm.engine_core.resources.engine_manager.processes]
        self._stop_token_ids = stop_token_ids
        self._max_model_len = max_model_len
        self._request_timeout_s = 0.0
        self._version = 0
        self._staged_version: int | None = None
        self._unusable: str | None = None

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
        _set_environment(rollout)
        # The engine's processes die with the thread that made them (PR_SET_PDEATHSIG): it has to live as long.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        begin = time.monotonic()
        others = {child.pid for child in multiprocessing.active_children()}
        # The import keeps the frame that it happens in alive, and with it what that frame holds.
        thread.submit(_import_vllm)
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(thread, _start_vllm, model, dtype, seed, rollout, max_model_len, transport)
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
        engine = cls(llm, thread, stop_token_ids, max_model_len)
        left_s = rollout.start_timeout_s - (time.monotonic() - begin)
        engine._request_timeout_s = rollout.request_timeout_s
        try:
            await engine._call("naming the weights", llm.update_weight_version("0"), max(left_s, 1.0))
        except BaseException:
            await engine.shutdown()
            raise
        return engine

    @property
    def version(self) -> int:
        """The weight version that new tokens are sampled from."""
        return self._version

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
        if len(prompt_ids) + max_tokens > self._max_model_len:
            raise EngineError(
                f"a prompt of {len(prompt_ids)} tokens and {max_tokens} more do not fit "
                f"the engine's {self._max_model_len}"
            )
        greedy = temperature == 0
        params = _sampling_params(
            n=1 if greedy else n,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed & ((1 << _SEED_BITS) - 1),
            stop_token_ids=self._stop_token_ids,
            logprobs=0,
        )
        output = await self._request(prompt_ids, params, request_id, urgent=greedy)
        samples = [sample_of(completion) for completion in sorted(output.outputs, key=lambda c: c.index)]
        return samples * n if greedy else samples

    async def score(self, token_ids: Sequence[int], request_id: str) -> Float32Array:
        """Log-probabilities, at temperature 1, of token_ids[1:], each given those before: float32 [tokens - 1].

        Computed afresh, without cached prefixes. Raises EngineError as `generate` does.
        """
        if not 2 <= len(token_ids) < self._max_model_len:
            raise EngineError(f"cannot score {len(token_ids)} tokens: 2 to {self._max_model_len - 1} fit the engine")
        params = _sampling_params(temperature=0, max_tokens=1, prompt_logprobs=0, skip_reading_prefix_cache=True)
        output = await self._request(token_ids, params, request_id, urgent=True)
        return chosen_logprobs(output.prompt_logprobs, first=1)

    async def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Prepare for updates from a learner; WeightSyncError if it speaks another format."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        async with self._sync_errors("the weight-sync handshake failed"):
            await self._call(
                "the handshake", self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))
            )

    async def start_weight_update(self) -> None:
        """Begin an update; one that was begun before and not finished is forgotten."""
        async with self._sync_errors("the weight update could not begin"):
            await self._discard_update()
            await self._call("start_weight_update", self._llm.start_weight_update())

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive, check and stage the weights described by `update_info`, while generation goes on.

        Raises WeightSyncError, with the live weights untouched, when they are not exactly what the
        model needs.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._sync_errors("the weight update was refused"):
            try:
                await self._call("update_weights", self._llm.update_weights(WeightTransferUpdateRequest(update_info)))
                await self._call("staging the weights", self._staging_done())
            except EngineError:
                if not self._llm.errored:
                    await self._discard_update()
                raise
        self._staged_version = int(update_info["version"])

    async def finish_weight_update(self, version: int) -> SyncTimings:
        """Swap the staged weights in as `version`; running requests go on with them.

        Their attention cache is recomputed, so every span's log-probabilities are exactly its
        version's. WeightSyncError with nothing changed when `version` is not what was staged; after
        any other failure the engine stays paused and every later call fails.
        """
        self._check_usable()
        if self._staged_version != version:
            raise WeightSyncError(f"asked to finish weight version {version}, but {self._staged_version} is staged")
        self._staged_version = None
        begin = time.monotonic()
        try:
            await self._call("pausing", self._llm.pause_generation(mode="keep", clear_cache=True))
            if not await self._call("clearing the cache", self._llm.reset_prefix_cache()):
                raise EngineError("the engine did not clear its prefix cache")
            paused = time.monotonic()
            await self._call("the swap", self._llm.finish_weight_update(str(version)))
            swapped = time.monotonic()
            self._version = version
            await self._call("resuming", self._llm.resume_generation())
        except BaseException as error:
            self._unusable = f"swapping in weight version {version} failed: {error!r}"
            if not isinstance(error, Exception):
                raise
            raise WeightSyncError(f"{self._unusable}; the engine stays paused and must be restarted") from error
        return SyncTimings(pause_s=time.monotonic() - begin, swap_s=swapped - paused)

    async def check_alive(self) -> None:
        """A round trip through the engine's processes; EngineError when one is gone or silent."""
        self._check_usable()
        for process in self._processes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise EngineError(f"an engine process (pid {process.pid}) is gone")
        await self._call("check_health", self._llm.collective_rpc("check_health"), _ALIVE_TIMEOUT_S)

    async def shutdown(self) -> None:
        """End the engine and its processes. Requests still running fail. May be called twice."""
        self._unusable = self._unusable or "it was shut down"
        idle = self._llm is not None and self._llm.get_num_unfinished_requests() == 0
        if idle and self._llm.output_handler is not None:  # it is there from the first request on
            # Nobody waits for output any more; left running, it would log the end of the engine as a failure.
            self._llm.output_handler.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._end)

    def _end(self) -> None:
        processes = with_descendants(self._processes)
        if self._llm is not None:
            self._llm.shutdown(timeout=_SHUTDOWN_TIMEOUT_S)
        self._llm = None
        kill(processes)
        self._thread.shutdown()

    async def _request(self, prompt_ids: Sequence[int], params: Any, request_id: str, *, urgent: bool) -> Any:
        self._check_usable()
        # A probe or an evaluation holds up the learner: it does not queue behind samples.
        priority = -1 if urgent else 0
        prompt = {"prompt_token_ids": [int(token) for token in prompt_ids]}
        try:
            async with asyncio.timeout(self._request_timeout_s):
                async for output in self._llm.generate(
                    prompt, params, request_id, priority=priority
                ):  # leaving it aborts the request
                    if output.finished:
                        return output
        except TimeoutError as error:
            raise EngineError(
                f"request {request_id} was not done within rollout.request_timeout_s = {self._request_timeout_s:g} s"
            ) from error
        except Exception as error:
            raise EngineError(f"request {request_id} failed in the engine: {error!r}") from error
        raise EngineError(f"request {request_id} ended without an output")

    async def _call(self, what: str, call: Awaitable[T], timeout_s: float | None = None) -> T:
        limit_s = self._request_timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await call
        except TimeoutError as error:
            raise EngineError(f"{what}: the engine did not answer within {limit_s:g} s") from error
        except PrimezeroError:
            raise
        except Exception as error:
            raise EngineError(f"{what}: {error}") from error

    async def _staging_done(self) -> None:
        # An RPC that waits would hold up generation: the engine does nothing else meanwhile.
        while True:
            (state,) = await self._llm.collective_rpc("primezero_staging")
            if state["done"]:
                break
            await asyncio.sleep(_POLL_S)
        if state["error"] is not None:
            raise EngineError(state["error"])

    async def _discard_update(self) -> None:
        self._staged_version = None
        await self._call("discarding an update", self._llm.collective_rpc("primezero_discard_update"))

    @asynccontextmanager
    async def _sync_errors(self, what: str) -> AsyncIterator[None]:
        self._check_usable()
        try:
            yield
        except EngineError as error:
            raise WeightSyncError(f"{what}: {error}") from error

    def _check_usable(self) -> None:
        if self._unusable is not None:
            raise EngineError(f"the engine is unusable: {self._unusable}")


def _set_environment(rollout: RolloutConfig) -> None:
    """What vLLM's processes read from the environment; has to be there before vLLM is imported."""
    if os.environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION", "0") not in ("", "0"):
        raise EngineError("VLLM_ALLOW_INSECURE_SERIALIZATION is set: it lets messages carry pickled code; unset it")
    os.environ.update(
        # Pinning by vLLM would put several engines on the same cores; affinity is inherited from the launcher.
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(rollout.threads),
        VLLM_CPU_KVCACHE_SPACE=str(rollout.kv_cache_gib),
        VLLM_ENABLE_V1_MULTIPROCESSING="1",
        # A forked child would inherit "plugins are loaded", and not die with its parent.
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_PLUGINS="primezero",
        VLLM_ENGINE_READY_TIMEOUT_S=str(max(1, int(rollout.start_timeout_s))),
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
        # Otherwise memory grows by the size of the model with each sync. Read by the C library of new processes.
        MALLOC_ARENA_MAX="1",
        MALLOC_MMAP_MAX_="0",
        MALLOC_TRIM_THRESHOLD_="16000000000",
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def _import_vllm() -> None:
    import vllm.v1.engine.async_llm  # noqa: F401


def _start_vllm(model: Path, dtype: str, seed: int, rollout: RolloutConfig, max_model_len: int, transport: str) -> Any:
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=str(model),
        dtype=dtype,
        seed=seed,
        load_format="safetensors",
        skip_tokenizer_init=True,
        trust_remote_code=False,
        # The model folder's own temperature, top_k and penalties must not be applied behind our back.
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        max_model_len=max_model_len,
        max_num_seqs=rollout.max_sequences,
        # On the CPU vLLM cannot take back the random draw of a seeded request whose prompt is only half
        # computed ("CPU Generator does not use offset"), so prompts are computed whole.
        enable_chunked_prefill=transport != "shm",
        max_num_batched_tokens=max(_STEP_TOKENS, max_model_len),
        block_size=rollout.block_size,
        enable_prefix_caching=True,
        scheduling_policy="priority",
        enforce_eager=True,
        distributed_executor_backend="uni",
        disable_log_stats=True,
        weight_transfer_config=WeightTransferConfig(backend=BACKENDS[transport]),
        worker_extension_cls=WORKER_EXTENSION,
    )
    return AsyncLLM.from_engine_args(arguments)


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


def _sampling_params(**arguments: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(
            **arguments, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
    except Exception as error:
        raise EngineError(f"the engine refuses these sampling parameters: {error}") from error
