"""Requests that are kept running while something is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import numpy as np

from launch.bench.models import FIRST_TOKEN
from shared.errors import EngineError

# (prompt ids, most tokens, seed, request id) → new ids as they arrive
Stream = Callable[[list[int], int, int, str], AsyncIterator[list[int]]]


class Generation:
    """`requests` requests of `response_tokens` tokens each, on random prompts; one that is ended early goes on anew.

    arrivals: of each request, (time.monotonic(), tokens) for every output of the engine
    """

    def __init__(
        self, stream: Stream, *, requests: int, prompt_tokens: int, response_tokens: int, vocabulary: int, seed: int
    ) -> None:
        self._stream = stream
        self._response_tokens = response_tokens
        self._seed = seed
        # New prompts for each generation: cached prefixes of an earlier one would make it start differently.
        prompts = np.random.default_rng(seed).integers(FIRST_TOKEN, vocabulary, (requests, prompt_tokens))
        self._prompts: list[list[int]] = prompts.tolist()
        self._tasks: list[asyncio.Task[None]] = []
        self.arrivals: list[list[tuple[float, int]]] = [[] for _ in range(requests)]
        self.begun = 0.0

    async def start(self) -> None:
        """Submit every request."""
        self.begun = time.monotonic()
        self._tasks = [asyncio.create_task(self._run(index)) for index in range(len(self._prompts))]

    async def wait(self, done: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait until `done()`; EngineError when a request fails or ends before, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            for task in self._tasks:
                if task.done():
                    task.result()
                    raise EngineError(
                        f"a request ended while {what}: {self._response_tokens} tokens were too few for the measurement"
                    )
            if time.monotonic() > deadline:
                raise EngineError(f"{what} took more than {timeout_s:g} s")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Abort what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def slowest(self, since: float = 0.0) -> int:
        """Outputs since `since` of the request that has the fewest."""
        return min(sum(arrived > since for arrived, _ in arrivals) for arrivals in self.arrivals)

    async def _run(self, index: int) -> None:
        ids = list(self._prompts[index])
        end = len(ids) + self._response_tokens
        for attempt in range(self._response_tokens):
            if len(ids) >= end:
                return
            request_id = f"bench-{self._seed}-{index}-{attempt}"
            async for new in self._stream(ids, end - len(ids), self._seed + index, request_id):
                self.arrivals[index].append((time.monotonic(), len(new)))
                ids = ids + new
