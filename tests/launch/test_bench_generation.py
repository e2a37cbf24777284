"""Requests kept running, on a stream that is no engine."""

import asyncio

import pytest

from launch.bench.generation import Generation
from shared.errors import EngineError


def generation(stream, *, response_tokens=50):
    return Generation(stream, requests=3, prompt_tokens=4, response_tokens=response_tokens, vocabulary=100, seed=7)


async def endless(prompt_ids, max_tokens, seed, request_id):
    for _ in range(max_tokens):
        await asyncio.sleep(0)
        yield [1]


async def test_requests_run_until_they_are_stopped():
    running = generation(endless, response_tokens=10**6)
    await running.start()
    await running.wait(lambda: running.slowest() >= 5, "running", 60)
    await running.stop()
    counts = [len(arrivals) for arrivals in running.arrivals]
    await asyncio.sleep(0.01)
    assert [len(arrivals) for arrivals in running.arrivals] == counts
    assert min(counts) >= 5
    assert running.slowest(running.arrivals[0][-1][0] + 1) == 0


async def test_an_aborted_request_goes_on_from_where_it_was():
    asked = []

    async def aborted_after_four(prompt_ids, max_tokens, seed, request_id):
        asked.append((len(prompt_ids), max_tokens, request_id))
        for _ in range(min(4, max_tokens)):
            yield [9]

    running = generation(aborted_after_four, response_tokens=10)
    await running.start()
    await asyncio.gather(*running._tasks)
    assert [(prompt, most) for prompt, most, _ in asked[:3]] == [(4, 10), (8, 6), (12, 2)]
    assert len({request_id for *_, request_id in asked}) == 9
    assert [sum(tokens for _, tokens in arrivals) for arrivals in running.arrivals] == [10, 10, 10]


async def test_requests_that_end_too_soon_say_what_to_do():
    running = generation(endless, response_tokens=3)
    await running.start()
    with pytest.raises(EngineError, match="3 tokens were too few"):
        await running.wait(lambda: running.slowest() >= 5, "running", 60)


async def test_a_request_that_fails_ends_the_wait_with_its_error():
    async def broken(prompt_ids, max_tokens, seed, request_id):
        yield [1]
        raise EngineError("it broke")

    running = generation(broken)
    await running.start()
    with pytest.raises(EngineError, match="it broke"):
        await running.wait(lambda: False, "running", 60)


async def test_a_wait_has_an_end():
    async def silent(prompt_ids, max_tokens, seed, request_id):
        await asyncio.sleep(3600)
        yield [1]

    running = generation(silent)
    await running.start()
    with pytest.raises(EngineError, match="first tokens took more than"):
        await running.wait(lambda: running.slowest() >= 1, "waiting for first tokens", 0.05)
    await running.stop()


async def test_prompts_are_never_the_same():
    seen = []

    async def seeing(prompt_ids, max_tokens, seed, request_id):
        seen.append(tuple(prompt_ids))
        await asyncio.sleep(0)
        for _ in range(max_tokens):
            yield [1]

    for seed in (1, 2):
        running = Generation(
            seeing, requests=2, prompt_tokens=8, response_tokens=1, vocabulary=100, seed=seed, renewed=True
        )
        await running.start()
        await running.wait(lambda running=running: running.slowest() >= 3, "running", 60)
        await running.stop()
    assert len(set(seen)) == len(seen) >= 12
    assert all(len(prompt) == 8 and 3 <= token < 100 for prompt in seen for token in prompt)


async def test_renewed_requests_are_not_all_done_at_once():
    asked = []

    async def counting(prompt_ids, max_tokens, seed, request_id):
        asked.append(max_tokens)
        for _ in range(max_tokens):
            await asyncio.sleep(0)
            yield [1]

    running = Generation(counting, requests=4, prompt_tokens=2, response_tokens=10, vocabulary=9, seed=0, renewed=True)
    await running.start()
    await running.wait(lambda: running.slowest() >= 25, "running", 60)
    await running.stop()
    assert asked[:4] == [3, 5, 8, 10]
    assert set(asked[4:]) == {10}
