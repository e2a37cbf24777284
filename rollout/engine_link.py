"""The line to vLLM that the parts of the engine adapter share: whether it can be used, and calls with a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from rollout.engine_vllm import failure
from shared.errors import EngineError, PrimezeroError

T = TypeVar("T")


class Link:
    """vLLM's AsyncLLM, until it is closed or has become unusable, which is for good."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._unusable: str | None = None

    def give_up(self, reason: str) -> None:
        """Every later `check` fails; the first reason stays."""
        self._unusable = self._unusable or reason

    def check(self) -> None:
        """EngineError once the engine has been given up."""
        if self._unusable is not None:
            raise EngineError(f"the engine is unusable: {self._unusable}")

    async def call(self, what: str, call: Awaitable[T], limit_s: float) -> T:
        """What `call` returns. EngineError, with `what` in front, when it fails or takes longer than `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                return await call
        except TimeoutError as error:
            raise EngineError(f"{what}: the engine did not answer within {limit_s:g} s") from error
        except PrimezeroError:
            raise
        except Exception as error:
            raise EngineError(f"{what}: {failure(error)}") from error
