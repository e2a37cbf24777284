"""`primezero bench e2e`: a whole step, rollout and learner at work together, against each alone, and a plain loop."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from launch.beginnings import probe, seed_stages
from launch.bench.benchmark import MODELS, Benchmark, faultless
from launch.bench.models import BenchModel, bench_model
from launch.bench.plain_process import PlainProcess
from launch.bench.report import Report, Result, machine
from launch.bench.rounds import median_ratio
from launch.bench.settings import setting
from launch.bench.split_processes import SplitProcesses
from launch.model_check import with_prompt_room
from learner.spec import LearnerSpec
from rollout.chat import ChatTokenizer
from rollout.environment import make_environment
from rollout.worker import WorkerSpec
from shared.config import Config, EnvironmentConfig
from shared.errors import ConfigError
from shared.weight_files import parameters

LARGE_PARAMETERS = 300_000_000
# Prompts, completions of each, tokens of each completion, as others measure it.
SMALL_WORK, LARGE_WORK = (64, 4, 64), (16, 2, 32)
_ENVIRONMENT = EnvironmentConfig(min_prime=2, max_prime=617, evaluation_problems_per_task=1)
# What the learner does with one batch after the other in a round. A step counts if the one before was of its kind.
# Two batches are sampled at once, and close in pairs.
_BESIDE_PLAIN = ("together",) * 2
_BESIDE_HALVES = (*("together",) * 3, *("rollout",) * 3, "learner")
_ARMS = ("generate", "overlap")
# On two cores an update of the small one takes about as long as its rollout; of the tiny one, half as long.
_MODELS = {"generate": "tiny", "overlap": "small"}
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class E2ESettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    environment: ClassVar[EnvironmentConfig] = _ENVIRONMENT

    model: str = setting("", "a model folder, or a shape; empty: tiny beside the plain loop, small beside its halves")
    vocabulary: int = setting(2048, "tokens that a shape has")
    dtype: str = setting("float32", "of engine, learner and the plain loop; or bfloat16")
    prompts: int = setting(0, "of a step, rounded up to a multiple of the tasks; 0: 64, or 16 from 300M parameters on")
    completions: int = setting(0, "of each prompt; 0: 4, or 2 from 300M parameters on")
    response_tokens: int = setting(0, "of each completion; 0: 64, or 32 from 300M parameters on")
    arms: tuple[str, ...] = setting(_ARMS, "what a step is compared with: a plain loop, and its halves alone")
    rounds: int = setting(5, "rounds of all that is compared, after one that warms up")
    engine_threads: int = setting(1, "CPU threads of the engine")
    learner_threads: int = setting(1, "CPU threads of the learner")
    max_tokens: int = setting(16384, "of one micro-batch of the learner: fewer need less memory")
    plain_threads: int = setting(0, "CPU threads of the plain loop; 0: all cores")
    cores: str = setting(
        "shared",
        "beside the plain loop, apart: half of them for the rollout and half for the learner; shared: all for both",
    )
    colocation: str = setting("concurrent", "concurrent, or alternate: the engine sleeps while the learner computes")
    kv_cache_gib: int = setting(1, "attention cache, GiB")
    timeout_s: float = setting(900.0, "limit for each step, seconds")


@dataclass(frozen=True, slots=True)
class Work:
    """One step: `completions` samples of at most `response_tokens` tokens of each of `prompts`, and one update."""

    prompts: int
    completions: int
    response_tokens: int

    def __str__(self) -> str:
        return f"{self.prompts} × {self.completions} × {self.response_tokens}"

    @property
    def tokens(self) -> int:
        """That are sampled where no completion ends early."""
        return self.prompts * self.completions * self.response_tokens


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of a step in one round: medians of those that count; None for what was not measured.

    together, rollout, learner: both at work; the rollout alone; the learner alone
    train, tokens: of a step of "together": the learner's update; how many were sampled
    sampling, update: of the plain loop
    """

    together: float
    train: float
    tokens: float
    rollout: float | None = None
    learner: float | None = None
    sampling: float | None = None
    update: float | None = None

    def described(self) -> str:
        """In one line."""
        spent = {name: value for name, value in asdict(self).items() if name != "tokens" and value is not None}
        return ", ".join(f"{name} {value:.3f} s" for name, value in spent.items())


@dataclass(frozen=True, slots=True)
class Measured:
    """rounds: without the one that warms up; steps: metrics.jsonl of the steps of "together" that count."""

    work: Work
    rounds: list[Round]
    steps: list[dict[str, Any]]

    def values(self, name: str) -> list[float]:
        """Of each round."""
        return [getattr(round_, name) for round_ in self.rounds]

    def median(self, name: str) -> float:
        """Over the rounds."""
        return statistics.median(self.values(name))

    def phase(self, name: str) -> float:
        """Seconds of a phase of the learner's step, median."""
        return statistics.median(step["phases"].get(name, 0.0) for step in self.steps)


def bench_e2e(settings: E2ESettings, say: Say = lambda _: None) -> Report:
    """Run the benchmark; `say` is told what is being done.

    Raises ConfigError for impossible settings, PrimezeroError where a process dies.
    """
    _check(settings)
    results: list[Result] = []
    names: list[str] = []
    counts: dict[str, int] = {}
    shown = {k: v for k, v in asdict(settings).items() if k not in ("model", "vocabulary", "dtype", "timeout_s")}
    shown["arms"] = ",".join(settings.arms)
    for arm in settings.arms:
        name = settings.model or _MODELS[arm]
        say(f"{arm}: making the model {name}")
        with bench_model(
            name, vocabulary=settings.vocabulary, dtype=settings.dtype, environment=settings.environment
        ) as model:
            count = parameters(model.folder)
            work = _work(settings, arm, count)
            results.extend(_RESULTS[arm](measure(settings, arm, model, work, say)))
        names.append(name)
        counts[f"{arm}.parameters"] = count
        shown[f"{arm}.work"] = str(work)
    return Report(
        benchmark="e2e",
        machine=machine(),
        model={
            "name": ", ".join(dict.fromkeys(names)),
            **counts,
            "vocabulary": model.vocabulary,
            "dtype": settings.dtype,
        },
        settings=shown,
        results=tuple(results),
    )


def _overlap_work(work: Work) -> Work:
    """As many completions, two of each prompt, a quarter as long: so the learner takes about as long as the rollout."""
    return Work(max(1, work.completions // 2) * work.prompts, 2, max(1, work.response_tokens // 4))


def _check(settings: E2ESettings) -> None:
    for key, values, known in (
        ("dtype", (settings.dtype,), ("bfloat16", "float32")),
        ("cores", (settings.cores,), ("apart", "shared")),
        ("colocation", (settings.colocation,), ("concurrent", "alternate")),
        ("arms", settings.arms, _ARMS),
    ):
        if not values or not set(values) <= set(known):
            raise ConfigError(f"--{key} {','.join(values) or 'is empty'}: there is {', '.join(known)}")
    if min(settings.rounds, settings.engine_threads, settings.learner_threads) < 1 or settings.completions == 1:
        raise ConfigError("--rounds and threads must be at least 1, --completions at least 2")
    if len(os.sched_getaffinity(0)) < 2 and ("overlap" in settings.arms or settings.cores == "apart"):
        raise ConfigError("rollout and learner are measured on cores of their own: --arms overlap needs two")


def _work(settings: E2ESettings, arm: str, parameter_count: int) -> Work:
    prompts, completions, response_tokens = LARGE_WORK if parameter_count >= LARGE_PARAMETERS else SMALL_WORK
    tasks = len(make_environment(_ENVIRONMENT).tasks)
    work = Work(
        prompts=-(-(settings.prompts or prompts) // tasks) * tasks,
        completions=settings.completions or completions,
        response_tokens=settings.response_tokens or response_tokens,
    )
    return _overlap_work(work) if arm == "overlap" else work


def measure(settings: E2ESettings, arm: str, model: BenchModel, work: Work, say: Say) -> Measured:
    """Run the processes of an arm: for "overlap" on cores apart, for "generate" beside a plain loop."""
    kinds = _BESIDE_HALVES if arm == "overlap" else _BESIDE_PLAIN
    every = sorted(os.sched_getaffinity(0))
    half = len(every) // 2
    apart = arm == "overlap" or settings.cores == "apart"
    rollout_cores, learner_cores = (every[:half], every[half:]) if apart else (every, every)
    with _temporary() as folder, _plain(settings, model, work, say) if arm == "generate" else nullcontext() as plain:
        steps = (settings.rounds + 1) * len(kinds) + 1
        config, learner, worker = _run(settings, model, work, folder, steps)
        say(f"{arm}: starting engine and learner, for steps of {work}")
        processes = SplitProcesses(
            config,
            learner,
            worker,
            folder=folder,
            rollout_cores=rollout_cores,
            learner_cores=learner_cores,
            timeout_s=settings.timeout_s,
        )
        rounds = []
        try:
            processes.next_batch()
            for number in range(settings.rounds + 1):
                rounds.append(_round(processes, kinds, plain if number else None))
                say(f"{arm}: round {number} of {settings.rounds}: {rounds[-1].described()}" if number else "warmed up")
            processes.skip()
            processes.finish()
        finally:
            processes.close()
        lines = (learner.run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    counted = [
        json.loads(line)
        for index, line in enumerate(lines[:-1])  # the last one ended the run
        if index >= len(kinds) and counted_kind(kinds, index % len(kinds)) == "together"
    ]
    return Measured(work, rounds[1:], counted)


def counted_kind(kinds: Sequence[str], index: int) -> str | None:
    """Of the step `index` of a round: its kind, if the one before, perhaps of the last round, was of that kind too."""
    return kinds[index] if kinds[index - 1] == kinds[index] else None


def _round(processes: SplitProcesses, kinds: Sequence[str], plain: PlainProcess | None) -> Round:
    """From a batch that the learner has to one that it has after as many steps as there are kinds."""
    found: dict[str, list[float]] = defaultdict(list)
    if plain is not None:  # the learner waits to be told what to do, and the rest is stopped
        with processes.stopped():
            found["sampling"], found["update"] = ([spent] for spent in plain.step())
    for index, kind in enumerate(kinds):
        match kind:
            case "together":
                processes.train()
            case "rollout":
                processes.skip()
            case "learner":
                found[kind].append(processes.train_alone())
        arrival = processes.next_batch()
        if (of := counted_kind(kinds, index)) is not None:
            found[of].append(arrival.since)
            if of == "together":
                found["train"].append(arrival.trained)
                found["tokens"].append(arrival.response_tokens)
    return Round(**{name: statistics.median(values) for name, values in found.items()})


def overlap_results(measured: Measured) -> Iterator[Result]:
    """A step, against the slower of its halves alone."""
    alone = [max(pair) for pair in zip(measured.values("rollout"), measured.values("learner"), strict=True)]
    less = [min(pair) for pair in zip(measured.values("rollout"), measured.values("learner"), strict=True)]
    together = measured.values("together")
    yield Result("overlap", statistics.median(together), "s", statistics.median(alone), "the slower of the two alone")
    yield Result("overlap_ratio", median_ratio(together, alone), "", None, "median over the rounds")
    yield Result("imbalance", median_ratio(alone, less), "", None, "the slower of the two alone, to the faster")
    both = [sum(each) - whole for *each, whole in zip(alone, less, together, strict=True)]
    yield Result("both_busy", max(0.0, statistics.median(both)), "s", statistics.median(together), "the step")
    for name in ("rollout", "learner"):
        yield Result(f"{name}_alone", measured.median(name), "s", statistics.median(together), "the step")
    yield from _step_results("overlap.", measured)


def generate_results(measured: Measured) -> Iterator[Result]:
    """Steps a second, against those of the plain loop."""
    plain = [sum(pair) for pair in zip(measured.values("sampling"), measured.values("update"), strict=True)]
    # A completion may end early, and in the plain loop none does.
    ours = [round_.together * measured.work.tokens / round_.tokens for round_ in measured.rounds]
    rate, reference = 1 / statistics.median(ours), 1 / statistics.median(plain)
    yield Result("vs_generate", rate, "steps/s", reference, "transformers.generate + PyTorch")
    yield Result("generate.sampling", measured.median("sampling"), "s", statistics.median(plain), "its step")
    yield Result("generate.update", measured.median("update"), "s", statistics.median(plain), "its step")
    yield from _step_results("", measured)


def _step_results(prefix: str, measured: Measured) -> Iterator[Result]:
    together = measured.median("together")
    yield Result(f"{prefix}step", together, "s")
    yield Result(f"{prefix}train", measured.median("train"), "s", together, "the step")
    for name in ("wait", "sync"):
        yield Result(f"{prefix}{name}", measured.phase(f"{name}_s"), "s", together, "the step")
    # A batch may come in within another's step.
    streams = [step["stream"]["cpu_s"] + step["stream"]["worker_cpu_s"] for step in measured.steps]
    yield Result(f"{prefix}wire", statistics.mean(streams), "s", together, "the step")
    rate = statistics.median(round_.tokens / round_.together for round_ in measured.rounds)
    yield Result(f"{prefix}tokens_per_s", rate, "tokens/s")
    prompt_tokens = statistics.median(step["prompt_tokens"] / step["episodes"] for step in measured.steps)
    yield Result(f"{prefix}prompt_tokens", prompt_tokens, "tokens", None, "of a completion")


_RESULTS = {"generate": generate_results, "overlap": overlap_results}


@contextmanager
def _temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pz"))  # short, for the sockets in it
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(
    settings: E2ESettings, model: BenchModel, work: Work, folder: Path, steps: int
) -> tuple[Config, LearnerSpec, WorkerSpec]:
    environment = make_environment(_ENVIRONMENT)
    config = Config.model_validate(
        {
            "run": {"name": "run", "folder": folder, "steps": steps, "evaluate_every": steps, "checkpoint_every": 0},
            "model": {"path": model.folder, "dtype": settings.dtype},
            "environment": _ENVIRONMENT,
            "selfplay": {
                "proposals_per_task": 0,
                "buffer_problems_per_task": work.prompts // len(environment.tasks),
                "attempts": work.completions,
                # So many that hardly a prompt comes twice in a batch, where it would be computed once.
                "seed_problems_per_task": 8 * work.prompts // len(environment.tasks),
                "max_staleness": 1,
            },
            "sampling": {"max_response_tokens": work.response_tokens},
            "rollout": {
                "threads": settings.engine_threads,
                "max_sequences": work.prompts * work.completions,
                "max_open_tickets": 2 * work.prompts,
                "colocation": settings.colocation,
                "kv_cache_gib": settings.kv_cache_gib,
                "gpu_cache_gib": settings.kv_cache_gib,
                "request_timeout_s": settings.timeout_s,
            },
            "learner": {"threads": settings.learner_threads, "max_tokens": settings.max_tokens},
            # The worker is stopped for long while others are measured, perhaps in the middle of a weight sync.
            "sync": {"timeout_s": settings.timeout_s},
            "stream": {"worker_timeout_s": settings.timeout_s, "batch_timeout_s": settings.timeout_s},
        }
    )
    config = with_prompt_room(config)
    config.run_folder.mkdir()
    endpoint = f"ipc://{folder}/stream"
    learner = LearnerSpec(
        endpoint=endpoint,
        run_folder=config.run_folder,
        environment=environment.fingerprint,
        seeds=seed_stages(environment, config),
        probe=probe(environment, ChatTokenizer.from_folder(model.folder), config),
        checkpoints=folder / "checkpoints",
        resume_from=None,
        lineage=0,
        stop_file=folder / "STOP",
    )
    return config, learner, WorkerSpec("rollout-0", endpoint)


def _plain(settings: E2ESettings, model: BenchModel, work: Work, say: Say) -> PlainProcess:
    """The same work in a plain loop, on prompts of the same kind."""
    environment, chat = make_environment(_ENVIRONMENT), ChatTokenizer.from_folder(model.folder)
    each = work.prompts // len(environment.tasks)
    say("starting the plain loop")
    return PlainProcess(
        model.folder,
        dtype=settings.dtype,
        prompts=[
            chat.prompt_ids(environment.solver_prompt(problem))
            for task in environment.tasks
            for problem in environment.evaluation_problems(task, each, seed=0)
        ],
        completions=work.completions,
        response_tokens=work.response_tokens,
        threads=settings.plain_threads or len(os.sched_getaffinity(0)),
        timeout_s=settings.timeout_s,
    )


BENCHMARK = Benchmark(
    "e2e",
    "a whole step, rollout and learner together",
    E2ESettings,
    faultless(bench_e2e),
    description="""\
A whole step: rollout and learner at work together, against the slower of the two alone, and
against transformers.generate with a plain PyTorch update. docs/benchmarks.md explains every figure.
""",
    examples=f"""\
examples:
  primezero bench e2e --json e2e.json
  primezero bench e2e --model qwen2.5-0.5b --dtype bfloat16 --rounds 5

{MODELS}
""",
)
