"""The order in which an engine is paused, changed and let go on, and when never again; on a fake of vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fake_llm import FakeLLM, engine_of
from virtual_time import run_in_virtual_time

from rollout.engine import Engine
from rollout.engine_deadlines import Deadlines
from shared.config import SyncConfig
from shared.errors import EngineError, WeightSyncError

Steps = Callable[[Engine], Coroutine[Any, Any, None]]


async def whole_update(engine: Engine, version: int = 1) -> None:
    await engine.start_weight_update()
    await engine.update_weights({"version": version})
    await engine.finish_weight_update(version)


def test_in_place_generation_stands_still_from_start_to_finish() -> None:
    async def run() -> None:
        llm = FakeLLM()
        engine = engine_of(llm, SyncConfig())
        await whole_update(engine, 7)
        assert llm.calls == [
            "pause keep clear",
            "reset",
            "start",
            "update",
            "finish 1",
            "primezero_live_weights",
            "resume",
        ]
        assert engine.version == 7

    asyncio.run(run())


def test_staged_generation_stands_still_for_the_swap_alone() -> None:
    async def run() -> None:
        llm = FakeLLM()
        engine = engine_of(llm, SyncConfig(in_flight="abort"), in_place=False)
        await whole_update(engine, 7)
        staged = ["primezero_discard_update", "start", "update", "primezero_staging"]
        assert llm.calls == [*staged, "pause abort clear", "reset", "finish 1", "primezero_live_weights", "resume"]

    asyncio.run(run())


def test_kept_cache_gets_a_salt_for_each_set_of_weights() -> None:
    """Also when a learner that began again sends a version that was there before."""

    async def run() -> None:
        llm = FakeLLM()
        engine = engine_of(llm, SyncConfig(keep_kv=True))
        for version in (5, 5):
            await whole_update(engine, version)
        assert "reset" not in llm.calls
        assert [call for call in llm.calls if call.startswith(("pause", "primezero_change"))] == [
            "pause keep",
            "primezero_change_salt 1",
            "pause keep",
            "primezero_change_salt 2",
        ]

    asyncio.run(run())


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_held_of_a_learner_that_has_left_is_let_go_but_for_an_update_that_it_left_open_in_place(
    in_place: bool,
) -> None:
    async def run() -> None:
        llm = FakeLLM()
        engine = engine_of(llm, SyncConfig(), in_place=in_place)
        await whole_update(engine)
        await engine.forget_learner()
        assert llm.calls[-1] == "primezero_forget_learner"
        await engine.start_weight_update()
        await engine.update_weights({"version": 2})
        llm.calls.clear()
        await engine.forget_learner()
        assert llm.calls == ([] if in_place else ["primezero_forget_learner"])
        with pytest.raises(WeightSyncError):
            await (engine.start_weight_update() if in_place else engine.finish_weight_update(2))

    asyncio.run(run())


async def start_twice(engine: Engine) -> None:
    await engine.start_weight_update()
    await engine.start_weight_update()


async def finish_without_weights(engine: Engine) -> None:
    await engine.start_weight_update()
    await engine.finish_weight_update(1)


async def finish_as_another(engine: Engine) -> None:
    await engine.start_weight_update()
    await engine.update_weights({"version": 1})
    await engine.finish_weight_update(2)


async def left_open(engine: Engine) -> None:
    await engine.start_weight_update()
    assert engine._sync._heard_at is not None
    await engine.check_alive()
    engine._sync._heard_at -= 2 * engine._sync.config.timeout_s
    await engine.check_alive()


@pytest.mark.parametrize(
    ("fails", "steps"),
    [
        ("pause", whole_update),
        ("reset", whole_update),
        ("start", whole_update),
        ("update", whole_update),
        ("finish", whole_update),
        ("", start_twice),
        ("", finish_without_weights),
        ("", finish_as_another),
        ("", left_open),
    ],
)
def test_failure_in_place_leaves_the_engine_paused_for_good(fails: str, steps: Steps) -> None:
    async def run() -> None:
        llm = FakeLLM()
        llm.fails = {fails}
        engine = engine_of(llm, SyncConfig())
        with pytest.raises((WeightSyncError, EngineError)):
            await steps(engine)
        later: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            engine.check_alive,
            engine.wake,
            engine.sleep,
            engine.start_weight_update,
            lambda: engine.update_weights({}),
            lambda: engine.finish_weight_update(1),
            lambda: engine.score([3, 4], "score"),
            lambda: engine.generate([3], n=1, temperature=1.0, max_tokens=2, seed=0, request_id="generate"),
        ]
        for call in later:
            with pytest.raises(EngineError, match="unusable"):
                await call()
        assert "resume" not in llm.calls

    asyncio.run(run())


@pytest.mark.parametrize("call", ["pause", "start", "update", "finish"])
def test_call_that_hangs_in_place_is_given_up(call: str) -> None:
    async def run() -> None:
        llm = FakeLLM()
        llm.hangs = {call}
        engine = engine_of(llm, SyncConfig(timeout_s=120))
        with pytest.raises(WeightSyncError, match="120 s"):
            await whole_update(engine)
        with pytest.raises(EngineError, match="unusable"):
            await engine.check_alive()
        assert "resume" not in llm.calls

    run_in_virtual_time(run())


@pytest.mark.parametrize("in_place", [False, True])
def test_waiting_for_too_long_leaves_the_old_weights_running(in_place: bool) -> None:
    async def run() -> None:
        llm = FakeLLM()
        llm.hangs = {"pause"}
        engine = engine_of(llm, SyncConfig(in_flight="wait", timeout_s=100), in_place=in_place)
        begin = asyncio.get_running_loop().time()
        with pytest.raises(WeightSyncError, match=r"still running after 80 s: raise sync\.timeout_s"):
            await whole_update(engine)
        assert asyncio.get_running_loop().time() - begin < 100
        assert llm.calls[-2:] == ["pause wait clear", "resume"]
        assert engine.version == 0
        llm.hangs = set()
        await whole_update(engine)
        assert engine.version == 1

    run_in_virtual_time(run())


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("slow", ["start", "update", "finish", "sleep", "wake", "reset", "init"])
def test_a_call_of_an_update_may_take_as_long_as_its_own_limit_and_the_engine_is_alive_meanwhile(
    slow: str, in_place: bool
) -> None:
    """Though nothing else gets through to it."""

    async def run() -> None:
        llm = FakeLLM()
        llm.takes = {slow: 900.0}
        engine = engine_of(llm, SyncConfig(timeout_s=1000), in_place=in_place, sleep_mode=True)
        checks = 0

        async def look_on() -> None:
            nonlocal checks
            while True:
                await asyncio.sleep(5)
                await engine.check_alive()
                checks += 1

        watching = asyncio.create_task(look_on())
        await engine.init_weight_transfer({})
        await engine.sleep()
        await engine.wake()
        await whole_update(engine, 1)
        assert not watching.done()
        watching.cancel()
        assert checks >= 100
        llm.hangs = {"check_health"}
        with pytest.raises(EngineError, match="check_health: the engine did not answer within 60 s"):
            await engine.check_alive()

    run_in_virtual_time(run())


def test_time_limits_stand_still_while_an_update_is_written_in_place() -> None:
    async def run() -> None:
        llm = FakeLLM()
        llm.takes = {"update": 90.0}
        engine = engine_of(llm, SyncConfig())
        deadlines = engine._requests.deadlines

        async def request(seconds: float) -> None:
            async with deadlines.limited():
                await asyncio.sleep(seconds)

        running = asyncio.create_task(request(deadlines.limit_s + 30))
        late = asyncio.create_task(request(deadlines.limit_s + 200))
        await asyncio.sleep(1)
        await whole_update(engine)
        await running
        with pytest.raises(TimeoutError):
            await late

    run_in_virtual_time(run())


def test_sleep_gives_memory_back_and_an_update_wakes_what_it_needs() -> None:
    async def run() -> None:
        llm = FakeLLM()
        engine = engine_of(llm, SyncConfig(), sleep_mode=True)
        await engine.sleep()
        await engine.sleep()
        assert llm.calls == ["pause keep clear", "reset", "sleep 1 keep"]
        llm.calls.clear()
        await engine.start_weight_update()
        with pytest.raises(WeightSyncError, match="update is open"):
            await engine.wake()
        await engine.update_weights({})
        await engine.finish_weight_update(1)
        await engine.wake()
        assert llm.calls == [
            "wake weights",
            "start",
            "update",
            "finish 1",
            "primezero_live_weights",
            "wake kv_cache",
            "resume",
        ]
        llm.calls.clear()
        await engine.sleep()
        await engine.wake()
        assert llm.calls == ["pause keep clear", "reset", "sleep 1 keep", "wake all", "resume"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sync", "pause"),
    [
        (SyncConfig(), ["pause keep clear", "reset"]),
        (SyncConfig(keep_kv=True), ["pause keep"]),
        (SyncConfig(in_flight="abort"), ["pause keep clear", "reset"]),
        (SyncConfig(in_flight="wait"), ["pause wait clear", "reset"]),
    ],
)
def test_sleep_without_memory_to_give_back_is_a_pause(sync: SyncConfig, pause: list[str]) -> None:
    async def run() -> None:
        llm = FakeLLM()
        engine = engine_of(llm, sync, in_place=False)
        await engine.sleep()
        await engine.wake()
        assert llm.calls == [*pause, "resume"]
        await engine.sleep()
        llm.calls.clear()
        await whole_update(engine)
        assert not any(call.startswith("pause") for call in llm.calls)
        assert llm.calls[-1] == "resume"

    asyncio.run(run())


def test_weights_that_an_update_will_bring_are_not_kept_over_a_sleep() -> None:
    async def run() -> None:
        llm = FakeLLM()
        engine = engine_of(llm, SyncConfig(), sleep_mode=True)
        await engine.sleep(for_update=True)
        assert "sleep 2 keep" in llm.calls
        with pytest.raises(WeightSyncError, match="sleeps until a weight update"):
            await engine.wake()  # with what memory holds by chance
        assert not any(call.startswith(("wake", "resume")) for call in llm.calls)
        await whole_update(engine)
        updated = ["wake weights", "start", "update", "finish 1", "primezero_live_weights", "wake kv_cache", "resume"]
        assert [call for call in llm.calls if call in updated] == updated
        await engine.sleep()
        assert "sleep 1 keep" in llm.calls
        await engine.wake()
        await engine.sleep(for_update=True)
        with pytest.raises(WeightSyncError, match="another one began"):
            await start_twice(engine)

    asyncio.run(run())


@pytest.mark.parametrize("fails", ["sleep", "wake", "resume"])
def test_engine_that_does_not_wake_up_is_unusable(fails: str) -> None:
    async def run() -> None:
        llm = FakeLLM()
        llm.fails = {fails}
        engine = engine_of(llm, SyncConfig(), sleep_mode=True)

        async def nap() -> None:
            await engine.sleep()
            await engine.wake()

        with pytest.raises(WeightSyncError, match="broke"):
            await nap()
        with pytest.raises(EngineError, match="unusable"):
            await engine.check_alive()

    asyncio.run(run())


def test_time_limits_stand_still_while_the_engine_sleeps() -> None:
    async def run() -> None:
        deadlines, loop = Deadlines(10.0), asyncio.get_running_loop()
        ended: dict[str, float] = {}

        async def limited(name: str, seconds: float) -> None:
            try:
                async with deadlines.limited():
                    await asyncio.sleep(seconds)
            except TimeoutError:
                name += " late"
            ended[name] = loop.time()

        async with asyncio.TaskGroup() as group:
            group.create_task(limited("early", 1e6))
            group.create_task(limited("quick", 8))
            await asyncio.sleep(4)
            deadlines.stop()
            deadlines.stop()
            group.create_task(limited("asleep", 1e6))
            group.create_task(limited("asleep, done", 50))
            await asyncio.sleep(96)
            deadlines.go()
            deadlines.go()
        assert ended == {"quick": 8, "asleep, done": 54, "early late": 106, "asleep late": 110}

    run_in_virtual_time(run())
