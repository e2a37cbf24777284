"""vLLM's AsyncLLM as the engine adapter sees it, without an engine: it writes down what it is asked for."""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from rollout.engine import Engine
from shared.config import SyncConfig

LIVE = [["a", "b"], [[4, 6], None]]


class FakeLLM:
    """calls: what was called, in order, with what matters of the arguments; `fails` and `hangs` name calls; `takes`:
    seconds of a call, during which the others wait, as in EngineCore's queue."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: set[str] = set()
        self.hangs: set[str] = set()
        self.takes: dict[str, float] = {}
        self._queue = asyncio.Lock()
        self.errored = False
        self.output_handler = None
        self.output_processor = SimpleNamespace(request_states={})
        manager = SimpleNamespace(processes=[])
        self.engine_core = SimpleNamespace(
            resources=SimpleNamespace(engine_manager=manager),
            call_utility_async=self._utility,
            pause_scheduler_async=self._pause,
        )

    async def _do(self, call: str, result: Any = None) -> Any:
        self.calls.append(call)
        name = call.split()[0]
        async with self._queue:
            await asyncio.sleep(self.takes.get(name, 0))
        if name in self.hangs:
            await asyncio.Event().wait()
        if name in self.fails:
            raise RuntimeError(f"{name} broke")
        return result

    async def _utility(self, method: str, argument: str) -> Any:
        return await self._do(f"{method} {argument}", [])

    async def _pause(self, *, mode: str, clear_cache: bool) -> None:
        await self._do(f"pause {mode}{' clear' if clear_cache else ''}")

    async def reset_prefix_cache(self) -> bool:
        return await self._do("reset", result=True)

    async def resume_generation(self) -> None:
        await self._do("resume")

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self._do("init")

    async def start_weight_update(self) -> None:
        await self._do("start")

    async def update_weights(self, request: Any) -> None:
        await self._do("update")

    async def finish_weight_update(self, label: str) -> None:
        await self._do(f"finish {label}")

    async def collective_rpc(self, method: str) -> Any:
        results = {"primezero_staging": [{"done": True, "error": None}], "primezero_live_weights": [[LIVE]]}
        return await self._do(method, results.get(method, [None]))

    async def sleep(self, *, level: int, mode: str) -> None:
        await self._do(f"sleep {level} {mode}")

    async def wake_up(self, tags: list[str] | None) -> bool:
        await self._do(f"wake {'all' if tags is None else ' '.join(tags)}")
        return tags != ["weights"]

    def get_num_unfinished_requests(self) -> int:
        return 0

    def shutdown(self, timeout: float) -> None:
        self.calls.append("shutdown")


def engine_of(llm: FakeLLM, sync: SyncConfig, *, in_place: bool = True, sleep_mode: bool = False) -> Engine:
    return Engine(
        llm,
        ThreadPoolExecutor(max_workers=1),
        tempfile.TemporaryDirectory(),
        stop_token_ids=[],
        max_model_len=64,
        request_timeout_s=60,
        sync=sync,
        in_place=in_place,
        sleep_mode=sleep_mode,
    )
