"""Traffic that stays in flight while weights change, and what transformers makes of the same tokens."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
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
from shared.episodes import Float32Array

RUNNING = 64
TOLERANCE = 1e-4
TOKENS = 96
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
        return traffic.result(250)

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


@torch.no_grad()
def replayed(versions: Mapping[int, Qwen2ForCausalLM], prompt: list[int], sample: Sample) -> Float32Array:
    """transformers' log-probabilities of the sample, its attention cache computed by the versions that it should be.

    The cache of a token is computed in the step that samples the next one: a span's version computes all from the last
    token of the span before on. A span that is not marked `mixed_kv` starts with nothing, and computes all afresh.
    """
    tokens = torch.tensor([prompt + sample.token_ids.tolist()])
    logprobs: list[torch.Tensor] = []
    cache, computed = DynamicCache(), 0
    for span in sample.spans:
        if not span.mixed_kv:
            cache, computed = DynamicCache(), 0
        start, end = len(prompt) + span.start, len(prompt) + span.end
        logits = versions[span.version](tokens[:, computed : end - 1], past_key_values=cache).logits[0, start - end :]
        logprobs.append(logits.log_softmax(-1).gather(1, tokens[0, start:end, None])[:, 0])
        computed = end - 1
    return np.asarray(torch.cat(logprobs), dtype=np.float32)


def plain_errors(versions: Mapping[int, Qwen2ForCausalLM], prompt: list[int], sample: Sample) -> list[float]:
    """Of each span, the largest difference to the log-probabilities that its version alone gives its tokens."""
    errors = []
    for span in sample.spans:
        tokens = prompt + sample.token_ids[: span.end].tolist()
        plain = reference_logprobs(versions[span.version], tokens)[len(prompt) - 1 + span.start :]
        errors.append(float(np.abs(sample.logprobs[span.start : span.end] - plain).max()))
    return errors
