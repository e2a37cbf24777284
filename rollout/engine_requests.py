"""Requests to the engine: sampling completions and scoring given tokens, across changes of its weights."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from rollout.engine_deadlines import Deadlines
from rollout.engine_link import Link
from rollout.engine_vllm import failure, sampling_params
from rollout.sample import Piece, Sample, chosen_logprobs, joined, piece_of
from shared.episodes import Float32Array, Int32Array, VersionSpan
from shared.errors import EngineError

_SEED_MASK = (1 << 62) - 1
# Lower is sooner. A probe or an evaluation holds up the learner and does not queue behind samples; a sample that was
# aborted had its turn in the queue already.
_URGENT, _CONTINUED, _NORMAL = -2, -1, 0


@dataclass(frozen=True, slots=True)
class _Order:
    """What all pieces of the samples of one `generate` have in common."""

    prompt_ids: list[int]
    temperature: float
    max_tokens: int
    seed: int
    request_id: str


class Requests:
    """What `Engine.generate` and `Engine.score` do.

    Keeps count of the weights that the engine has had: each has a label of its own, under which vLLM reports tokens
    and caches prompts. A learner that starts again can send other weights as a version that was there before.
    """

    def __init__(
        self, link: Link, *, stop_token_ids: list[int], max_model_len: int, timeout_s: float, salted: bool
    ) -> None:
        self._link = link
        self.stop_token_ids = stop_token_ids
        self._max_model_len = max_model_len
        self.deadlines = Deadlines(timeout_s)
        self.salted = salted
        self._versions = [0]
        self._serial = itertools.count()
        # By vLLM's external request id and sample: the labels under which the sample ran on older attention cache.
        self._kept: dict[str, defaultdict[int, set[str]]] = {}

    @property
    def version(self) -> int:
        """The weight version that new tokens are sampled from."""
        return self._versions[-1]

    @property
    def label(self) -> str:
        """The label of the weights now live."""
        return str(len(self._versions) - 1)

    @property
    def next_label(self) -> str:
        """The label of the weights that come next."""
        return str(len(self._versions))

    def weights_changed(self, version: int, kept: Iterable[str]) -> None:
        """From now on tokens come from weights labelled `next_label`, which are `version`.

        kept: vLLM's internal ids of the requests that go on with attention cache of older weights
        """
        label = self.next_label
        self._versions.append(version)
        states = self._link.llm.output_processor.request_states
        for internal_id in kept:
            # One that was given up meanwhile is not there any more.
            if (state := states.get(internal_id)) is not None and state.external_req_id in self._kept:
                self._kept[state.external_req_id][state.request_index].add(label)

    async def generate(
        self,
        prompt_ids: Sequence[int] | Int32Array,
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
        order = _Order(_listed(prompt_ids), temperature, max_tokens, seed & _SEED_MASK, request_id)
        greedy = temperature == 0
        params = self._sample_params(order, n=1 if greedy else n, max_tokens=max_tokens, seed=order.seed)
        async with self._deadline(request_id):
            first = await self._pieces(order.prompt_ids, params, request_id, _URGENT if greedy else _NORMAL)
            if not any(piece.aborted for piece in first):
                samples = [joined([piece]) for piece in first]
            else:
                samples = await _all(self._completed(order, index, piece) for index, piece in enumerate(first))
        return samples * n if greedy else samples

    async def score(self, token_ids: Sequence[int], request_id: str) -> Float32Array:
        """See `Engine.score`."""
        if not 2 <= len(token_ids) < self._max_model_len:
            raise EngineError(f"cannot score {len(token_ids)} tokens: 2 to {self._max_model_len - 1} fit the engine")
        params = sampling_params(temperature=0, max_tokens=1, prompt_logprobs=0, skip_reading_prefix_cache=True)
        tokens = _listed(token_ids)
        async with self._deadline(request_id):
            while True:
                label = self.label
                output, _ = await self._finished(tokens, params, request_id, _URGENT)
                # Scores have no versions: those that new weights came in between are made again.
                if label == self.label and output.outputs[0].finish_reason != "abort":
                    return chosen_logprobs(output.prompt_logprobs, first=1)

    async def stream(
        self, prompt_ids: Sequence[int], *, max_tokens: int, seed: int, request_id: str
    ) -> AsyncIterator[list[int]]:
        """See `Engine.stream`."""
        self._link.check()
        params = sampling_params(max_tokens=max_tokens, seed=seed & _SEED_MASK, ignore_eos=True, logprobs=0)
        params.output_kind = type(params.output_kind).DELTA
        prompt = self._prompt(_listed(prompt_ids))
        async for output in self._link.llm.generate(prompt, params, f"{request_id}#{next(self._serial)}"):
            yield list(output.outputs[0].token_ids)

    async def plain(
        self,
        prompt_ids: Sequence[int] | Int32Array,
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        request_id: str,
    ) -> int:
        """See `Engine.plain`."""
        order = _Order(_listed(prompt_ids), temperature, max_tokens, seed & _SEED_MASK, request_id)
        params = self._sample_params(order, n=n, max_tokens=max_tokens, seed=order.seed)
        request_id = f"{request_id}#{next(self._serial)}"
        async for output in self._link.llm.generate(
            self._prompt(order.prompt_ids), params, request_id, priority=_NORMAL
        ):
            if output.finished:
                return sum(len(completion.token_ids) for completion in output.outputs)
        raise EngineError(f"request {request_id} ended without an output")

    async def _completed(self, order: _Order, index: int, first: Piece) -> Sample:
        """The sample that begins with `first`: whenever it is aborted, it goes on from there as a new request."""
        pieces = [first]
        seed = (order.seed + index) & _SEED_MASK
        while pieces[-1].aborted:
            sampled = _listed(np.concatenate([piece.token_ids for piece in pieces]))
            params = self._sample_params(
                order, n=1, max_tokens=order.max_tokens - len(sampled), seed=continuation_seed(seed, len(sampled))
            )
            priority = _URGENT if order.temperature == 0 else _CONTINUED
            pieces += await self._pieces(order.prompt_ids + sampled, params, order.request_id, priority)
        return joined(pieces)

    def _sample_params(self, order: _Order, *, n: int, max_tokens: int, seed: int) -> Any:
        return sampling_params(
            n=n,
            temperature=order.temperature,
            max_tokens=max_tokens,
            seed=seed,
            stop_token_ids=self.stop_token_ids,
            logprobs=0,
        )

    async def _pieces(self, prompt_ids: list[int], params: Any, name: str, priority: int) -> list[Piece]:
        output, kept = await self._finished(prompt_ids, params, name, priority)

        def piece(completion: Any) -> Piece:
            mixed = kept.get(completion.index, ())
            return piece_of(
                completion,
                lambda label, start, end: VersionSpan(self._versions[int(label)], start, end, label in mixed),
            )

        return [piece(completion) for completion in sorted(output.outputs, key=lambda c: c.index)]

    async def _finished(
        self, prompt_ids: list[int], params: Any, name: str, priority: int
    ) -> tuple[Any, dict[int, set[str]]]:
        """vLLM's finished output, and for each of its samples the labels under which it ran on older cache."""
        self._link.check()
        request_id = f"{name}#{next(self._serial)}"
        prompt = self._prompt(prompt_ids)
        kept = self._kept[request_id] = defaultdict(set)
        try:
            async for output in self._link.llm.generate(
                prompt, params, request_id, priority=priority
            ):  # leaving it aborts the request
                if output.finished:
                    return output, kept
        except Exception as error:
            raise EngineError(f"request {name} failed in the engine: {failure(error)}") from error
        finally:
            del self._kept[request_id]
        raise EngineError(f"request {name} ended without an output")

    def _prompt(self, token_ids: list[int]) -> dict[str, Any]:
        # With its type vLLM takes it as it is; without, a thread looks at it first. The engine changes the salt when
        # newer weights get there first.
        return {"type": "token", "prompt_token_ids": token_ids} | ({"cache_salt": self.label} if self.salted else {})

    @asynccontextmanager
    async def _deadline(self, name: str) -> AsyncIterator[None]:
        try:
            async with self.deadlines.limited():
                yield
        except TimeoutError as error:
            raise EngineError(
                f"request {name} was not done within rollout.request_timeout_s = {self.deadlines.limit_s:g} s"
            ) from error


def continuation_seed(seed: int, position: int) -> int:
    """The seed, 62 bits, from which a sample of `seed` draws its tokens from `position` on after it was aborted there.

    At 0 it is `seed` itself: nothing was drawn from it. Else it is unlike that of any other sample and position: going
    on from `seed` would repeat the draws of the first tokens.
    """
    if position == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed} {position}".encode(), digest_size=8).digest(), "little") & _SEED_MASK


def _listed(token_ids: Sequence[int] | Int32Array) -> list[int]:
    return token_ids.tolist() if isinstance(token_ids, np.ndarray) else list(token_ids)


async def _all(calls: Iterable[Any]) -> list[Any]:
    """The results in order; when one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
