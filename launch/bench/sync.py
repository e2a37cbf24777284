"""`primezero bench sync`: what putting new weights into a running engine costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from launch.bench.arrivals import Cost, sync_cost
from launch.bench.benchmark import MODELS, Benchmark, faultless
from launch.bench.engines import MODES, TRANSPORTS, Sent, SyncedEngine
from launch.bench.generation import Generation
from launch.bench.models import BenchModel, bench_model, parameter_count
from launch.bench.report import Report, Result, machine
from launch.bench.settings import setting
from shared.config import Config, RolloutConfig, SyncConfig
from shared.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from launch.bench.copying import PlainCopy

_HEADLINE = "keep_kv"
_DEFAULT_MODES = tuple(mode for mode in ("keep", _HEADLINE) if mode in MODES)
_HEADLINE_RESULTS = (
    *("pause", "tokens_lost", "bytes", "calls", "stage", "swap", "resume", "engine_pause", "gb_per_s", "plain_copy"),
)
_PREFILLED_AGAIN = ("keep", "abort")
_SETTLE_STEPS = 8
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    model: str = setting("qwen2.5-0.5b", "a model folder, or a shape")
    vocabulary: int = setting(2048, "tokens that a shape has")
    dtype: str = setting("bfloat16", "of the weights, as sent and in the engine; or float32")
    transport: str = setting("auto", "how the weights travel: shm, ipc, nccl, or auto, by the machine")
    modes: tuple[str, ...] = setting(
        _DEFAULT_MODES, f"what becomes of running requests: one or several of {', '.join(MODES)}"
    )
    syncs: int = setting(5, "syncs measured in each mode, after one that warms up")
    requests: int = setting(16, "requests that run meanwhile")
    prompt_tokens: int = setting(64, "of each request")
    response_tokens: int = setting(1024, "most of each request; they must not be done before the measurement is")
    steady_steps: int = setting(16, "tokens of each request before the sync, at least")
    steady_s: float = setting(3.0, "seconds of generation before the sync, at least")
    engine_threads: int = setting(1, "CPU threads of the engine")
    sender_threads: int = setting(1, "CPU threads of the sender")
    kv_cache_gib: int = setting(1, "attention cache, GiB")
    timeout_s: float = setting(600.0, "limit for each step of the measurement, seconds")


@dataclass(frozen=True, slots=True)
class Round:
    """One sync measured, and its references: seconds of a plain copy, and of prefilling what was prefilled again."""

    sent: Sent
    cost: Cost
    plain_copy: float
    prefill: float | None


def bench_sync(settings: SyncSettings, say: Say = lambda _: None) -> Report:
    """Run the benchmark, a fresh engine for each mode; `say` is told what is being done.

    Raises ConfigError for impossible settings, and what engine and sender raise.
    """
    settings = replace(settings, transport=_resolved(settings.transport))
    _check(settings)
    import torch

    from launch.bench.copying import PlainCopy, torch_threads

    say(f"making the model {settings.model}")
    with (
        torch_threads(settings.sender_threads),
        bench_model(settings.model, vocabulary=settings.vocabulary, dtype=settings.dtype) as model,
    ):
        module = model.load(settings.dtype)
        copy = PlainCopy(module, getattr(torch, settings.dtype))
        arms = {mode: _arm(settings, mode, model, module, copy, say) for mode in settings.modes}
        described = {
            "name": model.name,
            "parameters": parameter_count(module),
            "vocabulary": model.vocabulary,
            "dtype": settings.dtype,
        }
    headline = _HEADLINE if _HEADLINE in arms else settings.modes[0]
    shown = {k: v for k, v in asdict(settings).items() if k not in ("model", "vocabulary", "dtype", "timeout_s")}
    return Report(
        benchmark="sync",
        machine=machine(),
        model=described,
        settings=shown | {"modes": ",".join(settings.modes), "headline": headline},
        results=_results(arms, headline, copy.nbytes, settings.requests * settings.prompt_tokens),
    )


def _resolved(transport: str) -> str:
    try:
        return Config(sync=SyncConfig(transport=transport)).transport
    except ValidationError as error:
        raise ConfigError(f"--transport {transport}: there is auto, {', '.join(TRANSPORTS)}") from error


def _check(settings: SyncSettings) -> None:
    for what, value, known in (
        ("--transport", (settings.transport,), TRANSPORTS),
        ("--modes", settings.modes, tuple(MODES)),
        ("--dtype", (settings.dtype,), ("bfloat16", "float32")),
    ):
        if not value or (unknown := [name for name in value if name not in known]):
            raise ConfigError(f"{what} {','.join(unknown) if value else 'is empty'}: there is {', '.join(known)}")
    for key in ("syncs", "requests", "prompt_tokens", "response_tokens", "engine_threads", "sender_threads"):
        if getattr(settings, key) < 1:
            raise ConfigError(f"--{key.replace('_', '-')} must be at least 1")
    if settings.steady_steps < 2:
        raise ConfigError("--steady-steps must be at least 2: a rate needs two arrivals")


def _arm(
    settings: SyncSettings, mode: str, model: BenchModel, module: torch.nn.Module, copy: PlainCopy, say: Say
) -> list[Round]:
    say(f"{mode}: starting the engine")
    engine = SyncedEngine(
        model.folder,
        module,
        mode=mode,
        transport=settings.transport,
        dtype=settings.dtype,
        rollout=RolloutConfig(
            threads=settings.engine_threads,
            max_sequences=settings.requests,
            kv_cache_gib=settings.kv_cache_gib,
            gpu_cache_gib=settings.kv_cache_gib,
        ),
        max_model_len=settings.prompt_tokens + settings.response_tokens,
    )
    rounds = []
    try:
        for number in range(settings.syncs + 1):
            measured = _round(settings, engine, copy, model.vocabulary, mode, seed=1000 * number)
            if number:  # the first one warms up
                rounds.append(measured)
                say(f"{mode}: sync {number} of {settings.syncs}, pause {measured.cost.pause:.3f} s")
    finally:
        engine.close()
    return rounds


def _round(
    settings: SyncSettings, engine: SyncedEngine, copy: PlainCopy, vocabulary: int, mode: str, seed: int
) -> Round:
    """Start the requests, let them run steadily, sync, and watch until the engine is itself again."""
    plain_copy = copy.seconds()

    def generation(prompt_tokens: int, response_tokens: int, seed: int) -> Generation:
        return Generation(
            engine.stream,
            requests=settings.requests,
            prompt_tokens=prompt_tokens,
            response_tokens=response_tokens,
            vocabulary=vocabulary,
            seed=seed,
            renewed=mode == "wait",
        )

    running = generation(settings.prompt_tokens, settings.response_tokens, seed)
    with _started(engine, running):
        steady_from = _first_tokens(engine, running, settings.timeout_s)

        def steady() -> bool:
            ran = max(arrivals[-1][0] for arrivals in running.arrivals) - steady_from
            return running.slowest(steady_from) >= settings.steady_steps and ran >= settings.steady_s

        engine.run(running.wait(steady, "reaching a steady rate", settings.timeout_s))
        sent = engine.send()

        def settled() -> bool:
            return running.slowest(sent.times.end) >= _SETTLE_STEPS

        engine.run(running.wait(settled, "getting back to the steady rate", settings.timeout_s))
    cost = sync_cost(running.arrivals, sent.times, _SETTLE_STEPS)
    prefill = None
    if mode in _PREFILLED_AGAIN:
        # As long as those that they stand for: short ones would end while others are still being prefilled.
        sampled = cost.context // settings.requests
        afresh = generation(
            settings.prompt_tokens + sampled, settings.response_tokens - sampled, seed + settings.requests
        )
        with _started(engine, afresh):
            prefill = _first_tokens(engine, afresh, settings.timeout_s) - afresh.begun
    return Round(sent=sent, cost=cost, plain_copy=plain_copy, prefill=prefill)


@contextmanager
def _started(engine: SyncedEngine, generation: Generation) -> Iterator[None]:
    engine.run(generation.start())
    try:
        yield
    finally:
        engine.run(generation.stop())


def _first_tokens(engine: SyncedEngine, generation: Generation, timeout_s: float) -> float:
    """When the last of the requests had its first token."""
    engine.run(generation.wait(lambda: generation.slowest() >= 1, "waiting for first tokens", timeout_s))
    return max(arrivals[0][0] for arrivals in generation.arrivals)


def _results(arms: dict[str, list[Round]], headline: str, nbytes: int, prompt_tokens: int) -> tuple[Result, ...]:
    """The headline's main figures under their plain names, then those of every mode under `<mode>.<name>`."""
    by_mode = {mode: _mode_results(rounds, nbytes, prompt_tokens) for mode, rounds in arms.items()}
    results = [result for result in by_mode[headline] if result.name in _HEADLINE_RESULTS]
    for mode, of_mode in by_mode.items():
        results += [replace(result, name=f"{mode}.{result.name}") for result in of_mode]
    return tuple(results)


def _mode_results(rounds: Sequence[Round], nbytes: int, prompt_tokens: int) -> list[Result]:
    def median(of: Callable[[Round], float]) -> float:
        return statistics.median(map(of, rounds))

    copy = median(lambda r: r.plain_copy)
    whole = median(lambda r: r.sent.times.end - r.sent.times.begin)
    pauses = [r.cost.pause for r in rounds]
    lost = [r.cost.tokens_lost for r in rounds]
    prefills = [r.prefill for r in rounds if r.prefill is not None]
    prefill = statistics.median(prefills) if prefills else None
    of_copy, of_sync, of_prefill = "plain copy", "the whole sync", "prefilling as many tokens"
    return [
        Result("pause", statistics.median(pauses), "s", copy, of_copy),
        Result("pause_min", min(pauses), "s", copy, of_copy),
        Result("pause_max", max(pauses), "s", copy, of_copy),
        Result("tokens_lost", statistics.median(lost), "s", whole, of_sync),
        Result("tokens_lost_min", min(lost), "s", whole, of_sync),
        Result("tokens_lost_max", max(lost), "s", whole, of_sync),
        Result("silence", median(lambda r: r.cost.silence), "s", copy, of_copy),
        Result("write", median(lambda r: r.sent.write_s), "s", copy, of_copy),
        Result("stage", median(lambda r: r.sent.times.finish - r.sent.times.begin), "s", copy, of_copy),
        Result("engine_pause", median(lambda r: r.sent.timings.pause_s), "s", copy, of_copy),
        Result("swap", median(lambda r: r.sent.timings.swap_s), "s", copy, of_copy),
        Result("resume", median(lambda r: r.cost.resume), "s", prefill, of_prefill if prefill else ""),
        Result("bytes", median(lambda r: r.sent.nbytes), "bytes", nbytes, "the parameters"),
        Result("calls", median(lambda r: r.sent.calls), "calls"),
        Result("gb_per_s", nbytes / whole / 1e9, "GB/s", nbytes / copy / 1e9, of_copy),
        Result("plain_copy", copy, "s"),
        Result("step", median(lambda r: r.cost.median_step), "s"),
        Result("tokens_per_s", median(lambda r: r.cost.rate), "tokens/s"),
        Result("context", median(lambda r: r.cost.context + prompt_tokens), "tokens"),
    ]


BENCHMARK = Benchmark(
    "sync",
    "weights into a running engine",
    SyncSettings,
    faultless(bench_sync),
    description="""\
What putting new weights into a running engine costs: bytes, calls, seconds of each phase, a plain
copy of the same bytes, and what the generation loses. docs/benchmarks.md explains every figure.
""",
    examples=f"""\
examples:
  primezero bench sync --json sync.json
  primezero bench sync --model models/some-instruct-model --modes keep --requests 64

{MODELS}
""",
)
