"""Closed tickets on their way to the learner: those that close at about the same time leave in one message."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from shared import messages as msg
from shared.ticket_wire import Frame

Send = Callable[[Sequence[Frame]], Awaitable[None]]


class Outbox:
    """For one asyncio loop. A ticket leaves `wait_s` after it was put in, sooner when `most_bytes` have come together.

    A message has at most `most_bytes` of tickets, or is one ticket.
    """

    def __init__(self, send: Send, *, most_bytes: int, wait_s: float) -> None:
        self._send = send
        self._most_bytes = most_bytes
        self._wait_s = wait_s
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._spent_s = 0.0

    def spent(self, cpu_s: float) -> None:
        """CPU seconds went into writing tickets; the next message says how many."""
        self._spent_s += cpu_s

    def put(self, frame: Frame) -> None:
        """A ticket's frame, to be sent."""
        self._frames.append(frame)
        self._bytes += len(frame)
        if self._is_full():
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._due.set)

    def clear(self) -> None:
        """Drop what has not been sent."""
        self._frames.clear()
        self._bytes = 0
        self._rest()

    async def run(self) -> None:
        """Send, for ever."""
        while True:
            await self._due.wait()
            frames = self._take()
            self._rest()
            if frames:
                spent, self._spent_s = self._spent_s, 0.0
                began = time.thread_time()
                await self._send(msg.encode_closed(frames, spent))
                self._spent_s += time.thread_time() - began

    def _is_full(self) -> bool:
        return self._bytes >= self._most_bytes or len(self._frames) >= msg.MAX_TICKETS_PER_MESSAGE

    def _take(self) -> list[Frame]:
        taken: list[Frame] = []
        size = 0
        while self._frames and len(taken) < msg.MAX_TICKETS_PER_MESSAGE:
            size += len(self._frames[0])
            if taken and size > self._most_bytes:
                break
            taken.append(self._frames.popleft())
        self._bytes -= sum(map(len, taken))
        return taken

    def _rest(self) -> None:
        """Until the next is due: at once what has been waiting beside what was sent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._frames:
            self._due.clear()
