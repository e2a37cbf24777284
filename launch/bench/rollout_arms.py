"""The two arms of the rollout benchmark, on one engine: the whole worker, and vLLM alone on the same requests."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from launch.bench.learner_end import LearnerEnd, Played
from rollout.engine import Engine
from rollout.engine_steps import Step
from rollout.engine_sync import SyncTimings
from rollout.sample import Sample
from rollout.worker import RolloutWorker, WorkerSpec, start_engine
from shared.config import Config
from shared.episodes import Float32Array
from shared.errors import EngineError
from shared.transport import StreamClient

T = TypeVar("T")
_LOOK_S = 0.05
_GOODBYE_S = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """What the worker asked of the engine, and when (time.monotonic())."""

    asked: float
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One arm, once: its duration, the tokens sampled, seconds of CPU of this process, the engine's steps.

    all_asked: when the last request was made
    """

    begin: float
    end: float
    tokens: int
    cpu: float
    steps: Sequence[Step]
    all_asked: float
    played: Played | None = None

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / (self.end - self.begin)

    def fullness(self, max_sequences: int, steps: int | None = None) -> float:
        """Share of the batch that was in use, mean over the steps, or the first so many."""
        used = [step.sequences for step in self.steps[:steps]]
        return sum(used) / (max_sequences * len(used)) if used else 0.0

    def steps_until_all_asked(self) -> int:
        """Steps that ended before the last request was made, at least one."""
        return max(1, sum(step.arrived <= self.all_asked for step in self.steps))


class Arms:
    """An engine, and what is measured on it. Methods are to be called one after the other; `close` at the end."""

    def __init__(self, config: Config, learner: LearnerEnd, *, timeout_s: float) -> None:
        self._config = config
        self._learner = learner
        self._timeout_s = timeout_s
        self._runner = asyncio.Runner()
        self._requests: list[Request] = []
        try:
            self._engine = self._runner.run(start_engine(config))
        except BaseException:
            self._runner.close()
            raise
        self._steps = self._engine.watch_steps()

    def worker(self, prepare: Callable[[RolloutWorker], None] = lambda worker: None) -> Run:
        """A worker comes, plays the batch and leaves. prepare: called before with the worker."""

        async def play() -> Run:
            engine = _Recorded(self._engine)
            with tempfile.TemporaryDirectory(prefix="primezero-bench-") as folder:
                endpoint = f"ipc://{folder}/stream"
                self._learner.listen(endpoint)
                client = StreamClient(endpoint, max_message_bytes=self._config.stream.max_message_mib * 2**20)
                try:
                    worker = RolloutWorker(self._config, WorkerSpec("rollout-0", endpoint), engine, client)  # type: ignore[arg-type]
                    prepare(worker)
                    cpu = time.process_time()
                    played = await self._until_played(worker)
                    cpu = time.process_time() - cpu
                finally:
                    client.close()
            self._requests = engine.requests
            return Run(
                begin=played.begin,
                end=played.end,
                tokens=played.tokens,
                cpu=cpu,
                steps=self._taken(),
                all_asked=engine.requests[-1].asked,
                played=played,
            )

        return self._run(play())

    def engine(self) -> Run:
        """vLLM alone, with the requests of the worker's last run, all of them at once."""

        async def replay() -> Run:
            cpu, begin = time.process_time(), time.monotonic()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._engine.plain(**request.arguments)) for request in self._requests]
            end = time.monotonic()
            steps = self._taken()
            return Run(
                begin=begin,
                end=end,
                tokens=sum(task.result() for task in tasks),
                cpu=time.process_time() - cpu,
                steps=steps,
                all_asked=begin,
            )

        return self._run(replay())

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self._engine.shutdown())
        self._runner.close()

    def _run(self, arm: Coroutine[Any, Any, Run]) -> Run:
        async def limited() -> Run:
            await self._engine.forget_prompts()
            self._taken()
            async with asyncio.timeout(self._timeout_s):
                return await arm

        try:
            return self._runner.run(limited())
        except TimeoutError as error:
            raise EngineError(f"one run of the benchmark took more than {self._timeout_s:g} s") from error

    def _taken(self) -> list[Step]:
        steps = self._steps[:]
        self._steps.clear()
        return steps

    async def _until_played(self, worker: RolloutWorker) -> Played:
        running = asyncio.create_task(worker.run())
        try:
            while not (running.done() or self._learner.answered()):
                await asyncio.sleep(_LOOK_S)
            if running.done():
                running.result()
            played = await asyncio.to_thread(self._learner.played, _GOODBYE_S)
            await asyncio.wait_for(asyncio.shield(running), _GOODBYE_S)
            return played
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


class _Recorded:
    """An engine that writes down what is sampled, and whose weights are version 0 without being sent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.requests: list[Request] = []

    @property
    def version(self) -> int:
        return self._engine.version

    async def generate(self, prompt_ids: Sequence[int], **arguments: Any) -> list[Sample]:
        self.requests.append(Request(time.monotonic(), {"prompt_ids": prompt_ids, **arguments}))
        return await self._engine.generate(prompt_ids, **arguments)

    async def finish_weight_update(self, version: int) -> SyncTimings:
        return SyncTimings(pause_s=0.0, swap_s=0.0, live=())

    async def score(self, token_ids: Sequence[int], request_id: str) -> Float32Array:
        return await self._engine.score(token_ids, request_id)

    async def check_alive(self) -> None:
        await self._engine.check_alive()
