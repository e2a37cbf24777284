"""Time limits of requests, which stand still while generation does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Deadlines:
    """Limits of `limit_s` seconds each, not counting the time between `stop` and `go`."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._running: set[asyncio.Timeout] = set()
        # What each has left, in seconds, while time stands still; None while it runs.
        self._left: dict[asyncio.Timeout, float] | None = None

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """A block that is cancelled, and raises TimeoutError, when its time is up."""
        async with asyncio.timeout(None if self._left is not None else self.limit_s) as timeout:
            self._running.add(timeout)
            if self._left is not None:
                self._left[timeout] = self.limit_s
            try:
                yield
            finally:
                self._running.discard(timeout)

    def stop(self) -> None:
        """Time stands still for all limits, those that begin later included."""
        if self._left is None:
            now = asyncio.get_running_loop().time()
            self._left = {}
            for timeout in self._running:
                when = timeout.when()
                if when is not None and not timeout.expired():
                    self._left[timeout] = max(0.0, when - now)
                    timeout.reschedule(None)

    def go(self) -> None:
        """Time runs again."""
        left, self._left = self._left or {}, None
        now = asyncio.get_running_loop().time()
        for timeout, seconds in left.items():
            if timeout in self._running:
                timeout.reschedule(now + seconds)
