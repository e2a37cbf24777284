"""`primezero bench rollout`: what a rollout worker makes of its engine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from launch.bench.benchmark import MODELS, Benchmark, faultless
from launch.bench.models import BenchModel, bench_model, parameter_count
from launch.bench.report import Report, Result, machine
from launch.bench.rounds import in_turn, median_ratio
from launch.bench.settings import setting
from launch.model_check import with_prompt_room
from shared.config import (
    Config,
    EnvironmentConfig,
    ModelConfig,
    RolloutConfig,
    SamplingConfig,
    SelfPlayConfig,
    StreamConfig,
)
from shared.errors import ConfigError

if TYPE_CHECKING:
    from launch.bench.parts import Parts
    from launch.bench.rollout_arms import Arms, Run

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    model: str = setting("tiny", "a model folder, or a shape")
    vocabulary: int = setting(2048, "tokens that a shape has")
    dtype: str = setting("float32", "of the engine; or bfloat16")
    prompts: str = setting("short", "short: a line, for the tiny model; instruct: full instructions")
    proposals_per_task: int = setting(96, "proposal tickets, of each of the three tasks")
    buffer_problems_per_task: int = setting(48, "buffer tickets, of each task")
    attempts: int = setting(8, "solver samples of a ticket")
    response_tokens: int = setting(12, "most of each response")
    prompt_tokens: int = setting(0, "most of each prompt; 0: as many as the model's prompts have")
    max_sequences: int = setting(256, "sequences that the engine decodes at once")
    max_open_tickets: int = setting(512, "tickets that the worker works on at once")
    engine_threads: int = setting(1, "CPU threads of the engine")
    kv_cache_gib: int = setting(1, "attention cache, GiB")
    rounds: int = setting(5, "of both arms, after one that warms up")
    timeout_s: float = setting(600.0, "limit for each run of an arm, seconds")


def bench_rollout(settings: RolloutSettings, say: Say = lambda _: None) -> Report:
    """Run the benchmark, both arms on one engine; `say` is told what is being done.

    Raises ConfigError for impossible settings, and what worker, learner's end and engine raise.
    """
    _check(settings)
    from launch.bench.learner_end import learner_end
    from launch.bench.parts import Parts
    from launch.bench.rollout_arms import Arms

    environment = EnvironmentConfig(prompts=settings.prompts, text_after_answer="unparsable")
    say(f"making the model {settings.model}")
    with bench_model(
        settings.model, vocabulary=settings.vocabulary, dtype=settings.dtype, environment=environment
    ) as model:
        config = with_prompt_room(_config(settings, model, environment), settings.prompt_tokens)
        described = {
            "name": model.name,
            "parameters": parameter_count(model.load(settings.dtype)),
            "vocabulary": model.vocabulary,
            "dtype": settings.dtype,
        }
        say("starting the engine")
        with learner_end(config, model.vocabulary) as learner:
            arms = Arms(config, learner, timeout_s=settings.timeout_s)
            try:
                runs = _runs(settings, arms, say)
                say("timing the parts of the worker")
                parts = Parts()
                with parts.records():
                    arms.worker(parts.watch)
            finally:
                arms.close()
    shown = {k: v for k, v in asdict(settings).items() if k not in ("model", "vocabulary", "dtype", "timeout_s")}
    return Report(
        benchmark="rollout", machine=machine(), model=described, settings=shown, results=_results(settings, runs, parts)
    )


def _check(settings: RolloutSettings) -> None:
    for what, value, known in (
        ("--dtype", settings.dtype, ("bfloat16", "float32")),
        ("--prompts", settings.prompts, ("short", "instruct")),
    ):
        if value not in known:
            raise ConfigError(f"{what} {value}: there is {', '.join(known)}")
    if settings.rounds < 1:
        raise ConfigError("--rounds must be at least 1")


def _config(settings: RolloutSettings, model: BenchModel, environment: EnvironmentConfig) -> Config:
    return Config(
        model=ModelConfig(path=model.folder, dtype=settings.dtype),
        environment=environment,
        selfplay=SelfPlayConfig(
            proposals_per_task=settings.proposals_per_task,
            buffer_problems_per_task=settings.buffer_problems_per_task,
            attempts=settings.attempts,
            references=3,
            max_staleness=0,
        ),
        sampling=SamplingConfig(max_response_tokens=settings.response_tokens),
        rollout=RolloutConfig(
            threads=settings.engine_threads,
            max_sequences=settings.max_sequences,
            max_open_tickets=settings.max_open_tickets,
            kv_cache_gib=settings.kv_cache_gib,
            gpu_cache_gib=settings.kv_cache_gib,
            request_timeout_s=settings.timeout_s,
        ),
        stream=StreamConfig(batch_timeout_s=settings.timeout_s),
    )


def _runs(settings: RolloutSettings, arms: Arms, say: Say) -> dict[str, list[Run]]:
    """Of each arm, a run a round."""
    runs: dict[str, list[Run]] = {"worker": [], "engine": []}

    def arm(name: str, run: Callable[[], Run]) -> Callable[[], float]:
        def measured() -> float:
            runs[name].append(run())
            return runs[name][-1].rate

        return measured

    say("playing a first batch")
    arms.worker()  # whose requests vLLM alone is asked again
    in_turn({"worker": arm("worker", arms.worker), "engine": arm("engine", arms.engine)}, settings.rounds, say)
    return {name: of_arm[1:] for name, of_arm in runs.items()}


def _results(settings: RolloutSettings, runs: dict[str, list[Run]], parts: Parts) -> tuple[Result, ...]:
    worker, engine = runs["worker"], runs["engine"]

    def median(arm: Sequence[Run], of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, arm))

    rates, plain = [run.rate for run in worker], [run.rate for run in engine]
    played = worker[0].played
    assert played is not None
    full = settings.max_sequences
    asking = round(median(worker, lambda r: r.steps_until_all_asked()))
    alone = "vLLM alone"
    whole = 1e3 * median(worker, lambda r: r.cpu / played.tickets)
    return (
        Result("worker_vs_engine", median_ratio(rates, plain), ""),
        Result("worker_vs_engine_min", min(w / e for w, e in zip(rates, plain, strict=True)), ""),
        Result("worker_vs_engine_max", max(w / e for w, e in zip(rates, plain, strict=True)), ""),
        Result("tokens_per_s", statistics.median(rates), "tokens/s", statistics.median(plain), alone),
        Result("tokens", played.tokens, "tokens", engine[0].tokens, alone),
        Result("tickets", played.tickets, "tickets"),
        Result("valid_proposals", played.valid, "tickets", played.proposals, "proposals"),
        Result("rejected", played.rejected, "messages"),
        Result(
            "batch_fullness",
            median(worker, lambda r: r.fullness(full, r.steps_until_all_asked())),
            "",
            median(engine, lambda r: r.fullness(full, asking)),
            alone,
        ),
        Result(
            "mean_batch",
            full * median(worker, lambda r: r.fullness(full)),
            "sequences",
            full * median(engine, lambda r: r.fullness(full)),
            alone,
        ),
        Result("steps", median(worker, lambda r: len(r.steps)), "steps", median(engine, lambda r: len(r.steps)), alone),
        Result(
            "cpu_per_token",
            1e6 * median(worker, lambda r: r.cpu / r.tokens),
            "us",
            1e6 * median(engine, lambda r: r.cpu / r.tokens),
            alone,
        ),
        Result(
            "cpu_per_ticket",
            whole,
            "ms",
            1e3 * median(engine, lambda r: r.cpu / played.tickets),
            alone,
        ),
        *(
            Result(f"cpu_per_ticket.{part}", 1e3 * parts.seconds[part] / played.tickets, "ms", whole, "all of it")
            for part in parts.names
        ),
    )


BENCHMARK = Benchmark(
    "rollout",
    "self-play on a running engine",
    RolloutSettings,
    faultless(bench_rollout),
    description="""\
What a rollout worker makes of its engine: tokens a second through the whole worker, self-play,
stream and acknowledgements included, beside vLLM alone on the same requests in the same engine.
""",
    examples=f"""\
examples:
  primezero bench rollout --json rollout.json
  primezero bench rollout --response-tokens 64 --proposals-per-task 32 --buffer-problems-per-task 16

{MODELS}
""",
)
