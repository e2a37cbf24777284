"""Requests to the engine: sampling completions and scoring given tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rollout.engine_link import Link
from rollout.engine_vllm import sampling_params
from rollout.sample import Sample, chosen_logprobs, sample_of
from shared.episodes import Float32Array
from shared.errors import EngineError

_SEED_BITS = 62


class Requests:
    """What `Engine.generate` and `Engine.score` do."""

    def __init__(self, link: Link, *, stop_token_ids: list[int], max_model_len: int, timeout_s: float) -> None:
        self._link = link
        self.stop_token_ids = stop_token_ids
        self._max_model_len = max_model_len
        self.timeout_s = timeout_s

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
        """See `Engine.generate`."""
        if len(prompt_ids) + max_tokens > self._max_model_len:
            raise EngineError(
                f"a prompt of {len(prompt_ids)} tokens and {max_tokens} more do not fit "
                f"the engine's {self._max_model_len}"
            )
        greedy = temperature == 0
        params = sampling_params(
            n=1 if greedy else n,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed & ((1 << _SEED_BITS) - 1),
            stop_token_ids=self.stop_token_ids,
            logprobs=0,
        )
        output = await self._request(prompt_ids, params, request_id, urgent=greedy)
        samples = [sample_of(completion) for completion in sorted(output.outputs, key=lambda c: c.index)]
        return samples * n if greedy else samples

    async def score(self, token_ids: Sequence[int], request_id: str) -> Float32Array:
        """See `Engine.score`."""
        if not 2 <= len(token_ids) < self._max_model_len:
            raise EngineError(f"cannot score {len(token_ids)} tokens: 2 to {self._max_model_len - 1} fit the engine")
        params = sampling_params(temperature=0, max_tokens=1, prompt_logprobs=0, skip_reading_prefix_cache=True)
        output = await self._request(token_ids, params, request_id, urgent=True)
        return chosen_logprobs(output.prompt_logprobs, first=1)

    async def _request(self, prompt_ids: Sequence[int], params: Any, request_id: str, *, urgent: bool) -> Any:
        self._link.check()
        # A probe or an evaluation holds up the learner: it does not queue behind samples.
        priority = -1 if urgent else 0
        prompt = {"prompt_token_ids": [int(token) for token in prompt_ids]}
        try:
            async with asyncio.timeout(self.timeout_s):
                async for output in self._link.llm.generate(
                    prompt, params, request_id, priority=priority
                ):  # leaving it aborts the request
                    if output.finished:
                        return output
        except TimeoutError as error:
            raise EngineError(
                f"request {request_id} was not done within rollout.request_timeout_s = {self.timeout_s:g} s"
            ) from error
        except Exception as error:
            raise EngineError(f"request {request_id} failed in the engine: {error!r}") from error
        raise EngineError(f"request {request_id} ended without an output")
