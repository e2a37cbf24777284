"""The prompt cache when weights change under running requests; runs inside vLLM's EngineCore process.

Blocks of the attention cache are found by hashes of their tokens and of a salt. Each set of weights has a salt of its
own: a request that waits gets the salt of the weights that will serve it, whenever it was made, so that it finds no
block that older weights computed. One that is running, and keeps its blocks, keeps its salt with them: what it
completes later, on old cache, is not found by requests that started under newer weights.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Make `primezero_change_salt` callable through vLLM's `call_utility_async`."""
    from vllm.v1.engine.core import EngineCore

    EngineCore.primezero_change_salt = _change_salt


def _change_salt(core: Any, salt: str) -> list[str]:
    salting = getattr(core, "primezero_salting", None)
    if salting is None:
        salting = core.primezero_salting = Salting(core.scheduler)
    return salting.change(salt)


class Salting:
    """Keeps every request in the scheduler's queue on the salt of the weights now live."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._salt: str | None = None
        self._add_request = scheduler.add_request
        self._preempt_request = scheduler._preempt_request

    def change(self, salt: str) -> list[str]:
        """Weights are about to change, generation being paused: all that waits gets `salt`.

        Returns the ids of the running requests: they keep the cache that they have. Raises RuntimeError when
        generation is not paused, or requests wait with cache of their own, as those of a KV connector do.
        """
        from vllm.v1.core.sched.interface import PauseState

        scheduler = self._scheduler
        if scheduler.pause_state is PauseState.UNPAUSED:
            raise RuntimeError("the cache salt changes only while generation is paused")
        if scheduler.kv_holding_waiting:
            raise RuntimeError("requests with attention cache are waiting: keep_kv does not go with a KV connector")
        # Requests enter the queue in these two ways: a new one, perhaps made before the last change and under way
        # since; and a running one that has lost its blocks, and would find them again under its old salt.
        scheduler.add_request = self._add
        scheduler._preempt_request = self._preempt
        self._salt = salt
        for request in scheduler.waiting:
            self._resalt(request)
        return [request.request_id for request in scheduler.running]

    def _add(self, request: Any) -> None:
        self._resalt(request)
        self._add_request(request)

    def _preempt(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._preempt_request(request, *args, **kwargs)
        self._resalt(request)

    def _resalt(self, request: Any) -> None:
        if request.cache_salt != self._salt:
            request.cache_salt = self._salt
            # A new list: the hashes of a request that was running may still be held by who worked with them.
            request.block_hashes = []
            request.update_block_hashes()
