"""Every way of syncing under load: no sample is lost or cut, and each token's version is the one that sampled it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest
from in_flight import PROBE, PROMPTS, TOKENS, TOLERANCE, Replay, Request, Running, check_spans
from tiny_engine import LoopThread, reference_logprobs, text

from rollout.engine_requests import continuation_seed
from rollout.sample import Sample

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def running(loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(loop, tmp_path_factory.mktemp("in-flight"))
    yield running
    running.close()


def pairs_of(requests: list[Request]) -> list[tuple[Request, Sample]]:
    return [(request, sample) for request in requests for sample in request.samples]


def check_exact(running: Running, requests: list[Request]) -> None:
    """Full lengths, ordered spans, and the log-probabilities that the spans promise."""
    for _, sample in pairs_of(requests):
        check_spans(sample)
        assert len(sample.token_ids) == TOKENS
        assert sample.truncated
    assert max(errors(Replay(running.versions), requests)) < TOLERANCE


def errors(replay: Replay, requests: list[Request], *, mixed_kv: bool = False) -> list[float]:
    """Of each span, or each marked one, the largest difference to what the replay says."""
    cases = [(request.prompt, sample) for request, sample in pairs_of(requests)]
    return [
        float(np.abs(sample.logprobs[span.start : span.end] - logprobs[span.start : span.end]).max())
        for (_, sample), logprobs in zip(cases, replay.logprobs(cases), strict=True)
        for span in sample.spans
        if span.mixed_kv or not mixed_kv
    ]


def of_queued(requests: list[Request]) -> list[tuple[Request, Sample]]:
    """Samples of requests that were made under an older version than their first token's."""
    return [(r, s) for r, s in pairs_of(requests) if s.spans[0].version > r.made_at]


def test_keep_recomputes_the_cache_of_running_requests(running: Running) -> None:
    running.use()
    requests = running.traffic_across(syncs=20)
    check_exact(running, requests)
    assert not any(span.mixed_kv for _, sample in pairs_of(requests) for span in sample.spans)
    assert sum(len(sample.spans) >= 3 for _, sample in pairs_of(requests)) >= 64
    assert len(of_queued(requests)) >= 10
    assert running.engine_error() < TOLERANCE


def test_keep_kv_keeps_the_cache_of_running_requests_and_of_nothing_else(running: Running) -> None:
    running.use(keep_kv=True)
    requests = running.traffic_across(syncs=20)
    check_exact(running, requests)
    samples = [sample for _, sample in pairs_of(requests)]
    # Those that waited at a sync share their prompts with older ones, and were hashed under the older salt.
    assert len(of_queued(requests)) >= 10
    assert all(
        [span.mixed_kv for span in sample.spans] == [False] + [True] * (len(sample.spans) - 1) for sample in samples
    )
    assert sum(len(sample.spans) >= 3 for sample in samples) >= 64
    mixed = errors(Replay(running.versions, plain=True), requests[:24], mixed_kv=True)
    assert np.quantile(mixed, 0.1) > 10 * TOLERANCE, "old and new cache hardly differ: nothing is shown"
    assert running.engine_error() < TOLERANCE


def test_wait_lets_every_sample_finish_on_its_version(running: Running) -> None:
    running.use(in_flight="wait")
    requests = running.traffic_across(syncs=3)
    check_exact(running, requests)
    assert all(len(sample.spans) == 1 for _, sample in pairs_of(requests))
    assert len({sample.spans[0].version for _, sample in pairs_of(requests)}) >= 3
    assert len(of_queued(requests)) >= 10


def test_abort_is_hidden(running: Running) -> None:
    running.use(in_flight="abort")
    requests = running.traffic_across(syncs=10)
    check_exact(running, requests)
    assert not any(span.mixed_kv for _, sample in pairs_of(requests) for span in sample.spans)
    assert sum(len(sample.spans) >= 3 for _, sample in pairs_of(requests)) >= 64
    assert any(len({len(s.spans) for s in r.samples}) > 1 for r in requests if len(r.samples) == 2)


def test_draws_of_aborted_samples_can_be_made_again(running: Running) -> None:
    """Of what the last version sampled: samples that were aborted before their first token, and ends of others."""
    running.use(in_flight="abort")
    # So many that not all have begun by the last of the two syncs.
    requests = running.traffic_across(syncs=2, pairs=8, singles=160)
    check_exact(running, requests)
    last = running.engine.version
    again = []
    for request in requests:
        for index, sample in enumerate(request.samples):
            span = sample.spans[-1]
            if span.version == last and request.made_at < last:
                again.append((request, sample, request.seed + index, span.start))
    unstarted = [case for case in again if case[3] == 0][:8]
    continued = [case for case in again if case[3] > 0][:8]
    assert unstarted
    assert continued
    for request, sample, seed, start in unstarted + continued:
        tokens = sample.token_ids.tolist()
        call = running.engine.generate(
            request.prompt + tokens[:start],
            n=1,
            temperature=1.0,
            max_tokens=TOKENS - start,
            seed=continuation_seed(seed, start),
            request_id="again",
        )
        [rest] = running.loop.run(call)
        assert rest.token_ids.tolist() == tokens[start:]


def test_aborted_samples_stop_where_they_should(running: Running) -> None:
    stop = (5, 6, 7, 8, 9)
    running.use(in_flight="abort", stop=stop)
    samples = [sample for _, sample in pairs_of(running.traffic_across(syncs=5))]
    assert {sample.truncated for sample in samples if len(sample.spans) > 1} == {True, False}
    for sample in samples:
        check_spans(sample)
        inside, last = sample.token_ids[:-1].tolist(), int(sample.token_ids[-1])
        assert not set(inside) & set(stop)
        assert len(sample.token_ids) == TOKENS if sample.truncated else last in stop


@pytest.mark.parametrize("mode", [{"in_flight": "abort"}, {"keep_kv": True}], ids=["abort", "keep_kv"])
def test_scores_are_of_one_version(running: Running, mode: dict[str, object]) -> None:
    running.use(**mode)  # type: ignore[arg-type]
    first, stop = running.engine.version, asyncio.Event()

    async def score() -> list[np.ndarray]:
        scores = []
        while not stop.is_set():
            scores += await asyncio.gather(*(running.engine.score(PROBE, f"score-{i}") for i in range(8)))
        return scores

    scoring = asyncio.run_coroutine_threadsafe(score(), running.loop._loop)
    traffic = running.traffic(stop, pairs=16, singles=0)
    running.sync(5)
    running.loop._loop.call_soon_threadsafe(stop.set)
    traffic.result(500)
    expected = [reference_logprobs(running.versions[v], PROBE) for v in range(first, running.engine.version + 1)]
    seen = [
        [bool(np.abs(scores - reference).max() < TOLERANCE) for reference in expected] for scores in scoring.result(500)
    ]
    assert all(sum(matches) == 1 for matches in seen)
    assert len({matches.index(True) for matches in seen}) > 1


@pytest.mark.parametrize("keep_kv", [False, True], ids=["cleared", "keep_kv"])
def test_sleep_loses_nothing(running: Running, keep_kv: bool) -> None:
    """Requests that run when the engine falls asleep, and that come while it sleeps; woken, and woken by a sync."""
    running.use(keep_kv=keep_kv)
    loop, engine = running.loop, running.engine

    async def begin(count: int, prompt: list[int], *, wait: bool) -> list[asyncio.Task[list[Sample]]]:
        tasks = [
            asyncio.create_task(
                engine.generate(prompt, n=1, temperature=1.0, max_tokens=400, seed=i, request_id=f"sleep-{i}")
            )
            for i in range(count)
        ]
        while wait and engine._link.llm.get_num_unfinished_requests() < count:
            await asyncio.sleep(0.01)
        return tasks

    async def finish(tasks: list[asyncio.Task[list[Sample]]]) -> list[Sample]:
        return list(chain(*await asyncio.gather(*tasks)))

    # What runs before each sleep has a prompt of its own: the first token of it was sampled by the older weights.
    early_prompt, late_prompt = text(2000 + keep_kv, 70), PROMPTS[0]
    for synced in (False, True):
        first = engine.version
        early = loop.run(begin(4, early_prompt, wait=True))
        # One that is answered later than those were sent: they have begun.
        loop.run(engine.generate(PROMPTS[1], n=1, temperature=1.0, max_tokens=8, seed=0, request_id="begun"))
        loop.run(engine.sleep())
        loop.run(engine.sleep())
        assert loop.run(engine._link.llm.is_paused())
        late = loop.run(begin(4, late_prompt, wait=True))
        loop.run(engine.check_alive())
        assert not any(task.done() for task in early + late)
        if synced:
            running.sync()
        else:
            loop.run(engine.wake())
        assert not loop.run(engine._link.llm.is_paused())
        loop.run(engine.wake())
        for prompt, tasks, versions in (
            (early_prompt, early, {first, engine.version}),
            (late_prompt, late, {engine.version}),
        ):
            samples = loop.run(finish(tasks))
            for sample in samples:
                check_spans(sample)
                assert len(sample.token_ids) == 400
                assert {span.version for span in sample.spans} == versions
                assert sample.spans[-1].mixed_kv == (synced and keep_kv and tasks is early)
            made = Request(prompt, 0, first, samples)
            assert max(errors(Replay(running.versions), [made])) < TOLERANCE
