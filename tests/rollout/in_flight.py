"""Traffic that stays in flight while weights change, and what transformers makes of the same tokens."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from tiny_engine import (
    NEVER_SAMPLED,
    ROLLOUT,
    DirectClient,
    LoopThread,
    reference_logprobs,
    save,
    start_engine,
    text,
    tiny_model,
)
from transformers import DynamicCache, Qwen2ForCausalLM

from learner.weight_sender import WeightSender
from rollout.sample import Sample
from shared.config import SyncConfig
from shared.episodes import Float32Array, VersionSpan

RUNNING = 64
TOLERANCE = 1e-4
TOKENS = 64
PROBE = text(0, 120)
# Over 64 tokens, so that two whole blocks of 32 can be found again; few, so that they are.
PROMPTS = [text(1000 + i, 70 + i) for i in range(6)]


@dataclass(frozen=True)
class Request:
    """One `generate`, what came of it, and the version that was live when it was made."""

    prompt: list[int]
    seed: int
    made_at: int
    samples: list[Sample]


class Running:
    """An engine that runs up to `RUNNING` requests, the learner's model, and every version of it."""

    def __init__(self, loop: LoopThread, folder: Path) -> None:
        self.loop = loop
        self.model = tiny_model(50, eos=NEVER_SAMPLED)
        self._base = copy.deepcopy(self.model.state_dict())
        rollout = ROLLOUT.model_copy(update={"max_sequences": RUNNING, "max_open_tickets": RUNNING})
        self.engine = loop.run(start_engine(save(self.model, folder), rollout=rollout))
        self.client = DirectClient(loop, self.engine)
        self._sender = WeightSender(self.client, self.model, dtype=torch.float32, transport="shm")
        self._sender.connect()
        self.versions = {0: copy.deepcopy(self.model)}
        self.use()

    def use(self, *, in_flight: str = "keep", keep_kv: bool = False, stop: tuple[int, ...] = ()) -> None:
        """Sync in this way from now on; without `stop` every request runs to its full length."""
        self.engine._sync.config = SyncConfig(in_flight=in_flight, keep_kv=keep_kv)
        self.engine._requests.salted = keep_kv
        self.engine._requests.stop_token_ids = list(stop)

    def sync(self, times: int = 1) -> None:
        """Weights a little off the first ones, each time in another direction."""
        for _ in range(times):
            version = self.engine.version + 1
            generator = torch.Generator().manual_seed(version)
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    value.copy_(self._base[name] + 0.01 * torch.randn(value.shape, generator=generator))
            self._sender.send(version)
            self.versions[version] = copy.deepcopy(self.model)

    def traffic(self, stop: asyncio.Event, *, pairs: int, singles: int) -> Future[list[Request]]:
        """Keep `pairs` requests of two samples and `singles` of one going until `stop`, then let them finish."""

        async def feed(feeder: int, n: int) -> list[Request]:
            requests = []
            while not stop.is_set():
                prompt, seed = PROMPTS[feeder % len(PROMPTS)], 1_000_000 * feeder + 10 * len(requests)
                made_at = self.engine.version
                samples = await self.engine.generate(
                    prompt, n=n, temperature=1.0, max_tokens=TOKENS, seed=seed, request_id=f"feeder-{feeder}"
                )
                requests.append(Request(prompt, seed, made_at, samples))
            return requests

        async def feeders() -> list[Request]:
            numbers = [2] * pairs + [1] * singles
            return list(chain(*await asyncio.gather(*(feed(i, n) for i, n in enumerate(numbers)))))

        return asyncio.run_coroutine_threadsafe(feeders(), self.loop._loop)

    def traffic_across(self, syncs: int, *, pairs: int = 32, singles: int = 32) -> list[Request]:
        """The requests made while there were `syncs` syncs in a row, all of which met running and queued ones."""
        stop = asyncio.Event()
        traffic = self.traffic(stop, pairs=pairs, singles=singles)
        try:
            self.sync(syncs)
        finally:
            self.loop._loop.call_soon_threadsafe(stop.set)
        return traffic.result(500)

    def engine_error(self) -> float:
        """Largest difference between the engine's and transformers' log-probabilities of the probe."""
        scores = self.loop.run(self.engine.score(PROBE, "probe"))
        return float(np.abs(scores - reference_logprobs(self.model, PROBE)).max())

    def close(self) -> None:
        self._sender.close()
        self.loop.run(self.engine.shutdown())


def check_spans(sample: Sample) -> None:
    """Spans cover the sample in order, versions only grow, and no two neighbours are the same."""
    edges = [0, *(span.end for span in sample.spans)]
    assert [span.start for span in sample.spans] == edges[:-1]
    assert edges[-1] == len(sample.token_ids) == len(sample.logprobs)
    assert all(start < end for start, end in pairwise(edges))
    versions = [span.version for span in sample.spans]
    assert versions == sorted(set(versions))


class Replay:
    """Samples computed again by transformers, with the attention cache that their spans promise.

    The cache of a token is computed in the step that samples the next one: a span's version computes all from the last
    token of the span before on. A span that is not marked `mixed_kv` starts with nothing, and computes all afresh; so
    does every span where `plain`.
    """

    def __init__(self, versions: Mapping[int, Qwen2ForCausalLM], *, plain: bool = False) -> None:
        self._versions = versions
        self._plain = plain

    @torch.no_grad()
    def logprobs(self, samples: Sequence[tuple[list[int], Sample]]) -> list[Float32Array]:
        """Of each (prompt, sample), float32 [tokens]. Version by version: in one batch, what a version computes."""
        states = [_State(prompt, sample) for prompt, sample in samples]
        for version in sorted({span.version for _, sample in samples for span in sample.spans}):
            batch = [state for state in states if any(span.version == version for span in state.sample.spans)]
            for state in batch:
                [state.span] = [span for span in state.sample.spans if span.version == version]
                if self._plain or not state.span.mixed_kv:
                    state.cache = []
            batch.sort(key=lambda state: state.cached)
            for first in range(0, len(batch), 32):
                _compute(self._versions[version], batch[first : first + 32])
        return [np.concatenate(state.logprobs) for state in states]


class _State:
    """How far one sample is computed: keys and values of each layer, [heads, tokens, size]."""

    span: VersionSpan

    def __init__(self, prompt: list[int], sample: Sample) -> None:
        self.prompt, self.sample = prompt, sample
        self.tokens = torch.tensor(prompt + sample.token_ids.tolist())
        self.cache: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.logprobs: list[Float32Array] = []

    @property
    def cached(self) -> int:
        return self.cache[0][0].shape[1] if self.cache else 0

    @property
    def new(self) -> torch.Tensor:
        """The tokens to be computed for the span: up to the one before its last."""
        return self.tokens[self.cached : len(self.prompt) + self.span.end - 1]


def _compute(model: Qwen2ForCausalLM, batch: Sequence[_State]) -> None:
    past, width = max(state.cached for state in batch), max(len(state.new) for state in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    positions = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), past + width, dtype=torch.long)
    for row, state in enumerate(batch):
        tokens[row, : len(state.new)] = state.new
        positions[row] = torch.arange(state.cached, state.cached + width)
        mask[row, : state.cached] = 1
        mask[row, past:] = 1
    cache = DynamicCache()
    if past:
        shape = next(state.cache[0][0] for state in batch if state.cache).shape
        for layer in range(model.config.num_hidden_layers):
            sides = torch.zeros(2, len(batch), shape[0], past, shape[2])
            for row, state in enumerate(batch):
                for side, kept in zip(sides, state.cache[layer] if state.cache else (), strict=False):
                    side[row, :, : state.cached] = kept
            cache.update(sides[0], sides[1], layer)
    logits = model(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
    for row, state in enumerate(batch):
        count, size = len(state.new), state.span.end - state.span.start
        chosen = state.tokens[len(state.prompt) + state.span.start : len(state.prompt) + state.span.end]
        logprobs = logits[row, count - size : count].log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        state.logprobs.append(np.asarray(logprobs, dtype=np.float32))
        new = [
            (layer.keys[row, :, past : past + count], layer.values[row, :, past : past + count])
            for layer in cache.layers
        ]
        old = state.cache or [(keys[:, :0], values[:, :0]) for keys, values in new]
        state.cache = [
            (torch.cat([k, new_k], 1), torch.cat([v, new_v], 1))
            for (k, v), (new_k, new_v) in zip(old, new, strict=True)
        ]
