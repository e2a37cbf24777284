"""Requests that are kept running while something is measured."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable

import numpy as np

from launch.bench.models import FIRST_TOKEN
from shared.errors import EngineError

# (prompt ids, most tokens, seed, request id) → new ids as they arrive
Stream = Callable[[list[int], int, int, str], AsyncIterator[list[int]]]


class Generation:
    """`requests` requests of `response_tokens` tokens each, on random prompts; an aborted one goes on where it was.

    renewed: in the place of a request that is done comes a new one, and the first ones are of different lengths, from
        `response_tokens` / `requests` up, so that they are not all done at once
    arrivals: of each request, or the succession of requests in its place, (time.monotonic(), tokens) for every output
    """

    def __init__(
        self,
        stream: Stream,
        *,
        requests: int,
        prompt_tokens: int,
        response_tokens: int,
        vocabulary: int,
        seed: int,
        renewed: bool = False,
    ) -> None:
        self._stream = stream
        self._prompt_tokens = prompt_tokens
        self._response_tokens = response_tokens
        self._vocabulary = vocabulary
        self._seed = seed
        self._renewed = renewed
        self._serial = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self.arrivals: list[list[tuple[float, int]]] = [[] for _ in range(requests)]
        self.begun = 0.0

    async def start(self) -> None:
        """Submit every request."""
        self.begun = time.monotonic()
        self._tasks = [asyncio.create_task(self._run(index)) for index in range(len(self.arrivals))]

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
        if not self._renewed:
            return await self._respond(index, self._response_tokens)
        await self._respond(index, -(self._response_tokens * (index + 1) // -len(self.arrivals)))
        while True:
            await self._respond(index, self._response_tokens)

    async def _respond(self, index: int, response_tokens: int) -> None:
        serial = next(self._serial)
        # New prompts for each: cached prefixes of an earlier one would make it start differently.
        generator = np.random.default_rng([self._seed, serial])
        ids: list[int] = generator.integers(FIRST_TOKEN, self._vocabulary, self._prompt_tokens).tolist()
        end = len(ids) + response_tokens
        for piece in itertools.count():
            if len(ids) >= end:
                return
            request_id = f"bench-{self._seed}-{serial}-{piece}"
            async for new in self._stream(ids, end - len(ids), self._seed + serial, request_id):
                self.arrivals[index].append((time.monotonic(), len(new)))
                ids = ids + new
