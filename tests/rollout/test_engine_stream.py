"""Tokens as they arrive, on a real engine."""

from __future__ import annotations

import pytest
from tiny_engine import EOS, LoopThread, text

from rollout.engine import Engine


@pytest.mark.integration
def test_streamed_tokens_are_those_of_a_sample_and_go_on_past_its_end(engine: Engine, loop: LoopThread) -> None:
    prompt, length = text(3, 20), 400

    async def stream() -> list[list[int]]:
        return [new async for new in engine.stream(prompt, max_tokens=length, seed=5, request_id="stream")]

    arrived = loop.run(stream())
    streamed = [token for new in arrived for token in new]
    assert len(streamed) == length
    assert len(arrived) > length // 2, "tokens did not arrive one by one"
    [sample] = loop.run(engine.generate(prompt, n=1, temperature=1.0, max_tokens=length, seed=5, request_id="whole"))
    sampled = sample.token_ids.tolist()
    assert sampled[-1] in (EOS, 77)
    assert len(sampled) < length
    assert streamed[: len(sampled)] == sampled
