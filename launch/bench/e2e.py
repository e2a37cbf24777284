"""`primezero bench e2e`: a whole step, rollout and learner at work together, against each alone, and a plain loop."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launch.bench.models import BenchModel, bench_model
from launch.bench.plain_process import PlainProcess
from launch.bench.report import Report, Result, machine
from launch.bench.settings import setting
from launch.bench.split_processes import SplitProcesses
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
_PROMPT_TOKENS = 512
# What the learner does with one batch after the other in a round. A step counts if the one before was of its kind.
_ROUND = ("together",) * 3 + ("rollout",) * 3 + ("learner",)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class E2ESettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    model: str = setting("tiny", "a model folder, or a shape")
    vocabulary: int = setting(2048, "tokens that a shape has")
    dtype: str = setting("float32", "of engine, learner and the plain loop; or bfloat16")
    prompts: int = setting(0, "of a step, rounded up to a multiple of the tasks; 0: 64, or 16 from 300M parameters on")
    completions: int = setting(0, "of each prompt; 0: 4, or 2 from 300M parameters on")
    response_tokens: int = setting(0, "of each completion; 0: 64, or 32 from 300M parameters on")
    rounds: int = setting(5, "rounds of all arms, after one that warms up")
    engine_threads: int = setting(1, "CPU threads of the engine")
    learner_threads: int = setting(1, "CPU threads of the learner")
    plain_threads: int = setting(0, "CPU threads of the plain loop; 0: all cores")
    cores: str = setting(
        "shared",
        "beside the plain loop, apart: half of them for the rollout and half for the learner; shared: all for both",
    )
    colocation: str = setting("concurrent", "concurrent, or alternate: the engine sleeps while the learner computes")
    kv_cache_gib: int = setting(1, "attention cache on the CPU, GiB")
    timeout_s: float = setting(900.0, "limit for each step, seconds")


@dataclass(frozen=True, slots=True)
class Work:
    """One step: `completions` samples of at most `response_tokens` tokens of each of `prompts`, and one update."""

    prompts: int
    completions: int
    response_tokens: int

    @property
    def tokens(self) -> int:
        """That are sampled where no completion ends early."""
        return self.prompts * self.completions * self.response_tokens


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of a step in one round: medians of those that count.

    together, rollout, learner: both at work; the rollout alone; the learner alone
    tokens: sampled in a step of "together"; plain: the plain loop, its sampling and its update
    """

    together: float
    rollout: float
    learner: float
    tokens: float
    plain: tuple[float, float] | None

    def described(self) -> str:
        """In one line."""
        plain = "" if self.plain is None else f", plain loop {self.plain[0]:.3f} + {self.plain[1]:.3f} s"
        return f"together {self.together:.3f} s, rollout {self.rollout:.3f} s, learner {self.learner:.3f} s{plain}"

    @property
    def alone(self) -> float:
        """The slower of the two alone."""
        return max(self.rollout, self.learner)

    @property
    def imbalance(self) -> float:
        """The slower of the two alone, over the faster."""
        return self.alone / min(self.rollout, self.learner)


@dataclass(frozen=True, slots=True)
class Measured:
    """rounds: without the one that warms up; steps: metrics.jsonl of the steps of "together" that count."""

    work: Work
    rounds: list[Round]
    steps: list[dict[str, Any]]

    def median(self, of: Callable[[Round], float]) -> float:
        return statistics.median(map(of, self.rounds))

    def phase(self, name: str) -> float:
        """Seconds of a phase of the learner's step, median."""
        return statistics.median(step["phases"].get(name, 0.0) for step in self.steps)


def bench_e2e(settings: E2ESettings, say: Say = lambda _: None) -> Report:
    """Run the benchmark; `say` is told what is being done.

    Raises ConfigError for impossible settings, PrimezeroError where a process dies.
    """
    _check(settings)
    say(f"making the model {settings.model}")
    with bench_model(
        settings.model, vocabulary=settings.vocabulary, dtype=settings.dtype, environment=_ENVIRONMENT
    ) as model:
        count = parameters(model.folder)
        work = _work(settings, count)
        measured = _measure(settings, model, work, say, cores=settings.cores, with_plain=True)
        apart = _measure(settings, model, _balanced_work(measured), say, cores="apart", with_plain=False)
    shown = {k: v for k, v in asdict(settings).items() if k not in ("model", "vocabulary", "dtype", "timeout_s")}
    return Report(
        benchmark="e2e",
        machine=machine(),
        model={
            "name": model.name,
            "parameters": count,
            "vocabulary": model.vocabulary,
            "dtype": settings.dtype,
        },
        settings=shown | asdict(work) | {f"overlap_{k}": v for k, v in asdict(apart.work).items()},
        results=tuple(_results(measured, apart)),
    )


def _check(settings: E2ESettings) -> None:
    for key, known in (
        ("dtype", ("bfloat16", "float32")),
        ("cores", ("apart", "shared")),
        ("colocation", ("concurrent", "alternate")),
    ):
        if getattr(settings, key) not in known:
            raise ConfigError(f"--{key} {getattr(settings, key)}: there is {', '.join(known)}")
    if min(settings.rounds, settings.engine_threads, settings.learner_threads) < 1 or settings.completions == 1:
        raise ConfigError("--rounds and threads must be at least 1, --completions at least 2")
    if len(os.sched_getaffinity(0)) < 2:
        raise ConfigError("rollout and learner are measured on cores of their own: this needs two")


def _work(settings: E2ESettings, parameter_count: int) -> Work:
    prompts, completions, response_tokens = LARGE_WORK if parameter_count >= LARGE_PARAMETERS else SMALL_WORK
    tasks = len(make_environment(_ENVIRONMENT).tasks)
    return Work(
        prompts=-(-(settings.prompts or prompts) // tasks) * tasks,
        completions=settings.completions or completions,
        response_tokens=settings.response_tokens or response_tokens,
    )


def _balanced_work(measured: Measured) -> Work:
    """Other sizes, at which rollout and learner should take as long as each other alone.

    Sampling takes time for every response token, learning for every prompt token too: shorter responses, of more
    prompts, shift the time from the rollout to the learner.
    """
    work = measured.work
    rollout, learner = measured.median(lambda r: r.rollout), measured.median(lambda r: r.learner)
    computed = statistics.median(step["learner"]["forward_tokens"] / step["episodes"] for step in measured.steps)
    prompt_tokens = computed - work.response_tokens  # a completion's share of its prompt
    sampling = rollout / work.response_tokens
    training = learner / computed
    if sampling <= training or prompt_tokens <= 0 or rollout <= learner:  # shorter ones would not help
        return work
    length = max(4, round(training * prompt_tokens / (sampling - training)))
    length = min(length, work.response_tokens)
    return replace(
        work, prompts=work.prompts * max(1, round(work.response_tokens / length / 2)), response_tokens=length
    )


def _measure(
    settings: E2ESettings, model: BenchModel, work: Work, say: Say, *, cores: str, with_plain: bool
) -> Measured:
    every = sorted(os.sched_getaffinity(0))
    half = len(every) // 2
    rollout_cores, learner_cores = (every[:half], every[half:]) if cores == "apart" else (every, every)
    with _temporary() as folder, _plain(settings, model, work, say) if with_plain else nullcontext() as plain:
        config, learner, worker = _run(settings, model, work, folder)
        say(f"{work.prompts} × {work.completions} × {work.response_tokens}: starting engine and learner")
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
            for number in range(settings.rounds + 1):
                rounds.append(_round(processes, plain))
                say(f"round {number} of {settings.rounds}: {rounds[-1].described()}" if number else "warmed up")
            processes.next_batch()
            processes.skip()
            processes.finish()
        finally:
            processes.close()
        lines = (learner.run_folder / "metrics.jsonl").read_text().splitlines()
    counted = [
        json.loads(line)
        for index, line in enumerate(lines[:-1])  # the last one ended the run
        if index >= len(_ROUND) and _kind_that_counts(index % len(_ROUND)) == "together"
    ]
    return Measured(work, rounds[1:], counted)


def _kind_that_counts(index: int) -> str | None:
    """Of the step `index` of a round: its kind, if the one before it was of that kind too."""
    before, kind = _ROUND[index - 1 : index + 1] if index else (None, _ROUND[0])
    return kind if before == kind else None


def _round(processes: SplitProcesses, plain: PlainProcess | None) -> Round:
    found: dict[str, list[float]] = {"together": [], "rollout": [], "learner": []}
    tokens = []
    for index, kind in enumerate(_ROUND):
        arrival = processes.next_batch()
        if index and (of := _kind_that_counts(index - 1)) is not None:
            found[of].append(arrival.since)
        match kind:
            case "together":
                tokens.append(arrival.response_tokens)
                processes.train()
            case "rollout":
                processes.skip()
            case "learner":
                found[kind].append(processes.train_alone())
    spent = None
    if plain is not None:
        with processes.stopped():
            spent = plain.step()
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    return Round(**medians, tokens=statistics.median(tokens), plain=spent)


def _results(measured: Measured, apart: Measured) -> Iterator[Result]:
    together, alone = apart.median(lambda r: r.together), apart.median(lambda r: r.alone)
    yield Result("overlap", together, "s", alone, "the slower of the two alone")
    yield Result("overlap_ratio", apart.median(lambda r: r.together / r.alone), "", 1.0, "median over rounds")
    yield Result("overlap.imbalance", apart.median(lambda r: r.imbalance), "", 1.0, "equally slow alone")
    yield from _step_results("overlap.", apart)
    plain = [round_.plain for round_ in measured.rounds if round_.plain is not None]
    sampling, update = (statistics.median(seconds) for seconds in zip(*plain, strict=True))
    # A completion may end early, and in the plain loop none does.
    whole = measured.median(lambda r: r.tokens / measured.work.tokens / r.together)
    yield Result("vs_generate", whole, "steps/s", 1 / (sampling + update), "transformers.generate + PyTorch")
    yield Result("generate.sampling", sampling, "s")
    yield Result("generate.update", update, "s")
    yield from _step_results("", measured)


def _step_results(prefix: str, measured: Measured) -> Iterator[Result]:
    together = measured.median(lambda r: r.together)
    yield Result(f"{prefix}step", together, "s")
    for name, of in (("rollout_alone", lambda r: r.rollout), ("learner_alone", lambda r: r.learner)):
        yield Result(f"{prefix}{name}", measured.median(of), "s", together, "the step")
    both = measured.median(lambda r: max(0.0, r.rollout + r.learner - r.together))
    yield Result(f"{prefix}both_busy", both, "s", together, "the step")
    for name in ("wait", "train", "sync"):
        yield Result(f"{prefix}{name}", measured.phase(f"{name}_s"), "s", together, "the step")
    yield Result(f"{prefix}tokens_per_s", measured.median(lambda r: r.tokens / r.together), "tokens/s")


@contextmanager
def _temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pz"))  # short, for the sockets in it
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(settings: E2ESettings, model: BenchModel, work: Work, folder: Path) -> tuple[Config, LearnerSpec, WorkerSpec]:
    from launch.train import probe, seed_stages  # it imports Ray

    environment = make_environment(_ENVIRONMENT)
    steps = (settings.rounds + 1) * len(_ROUND) + 1
    config = Config.model_validate(
        {
            "run": {"name": "run", "folder": folder, "steps": steps, "evaluate_every": steps, "checkpoint_every": 0},
            "model": {"path": model.folder, "dtype": settings.dtype},
            "environment": _ENVIRONMENT,
            "selfplay": {
                "proposals_per_task": 0,
                "buffer_problems_per_task": work.prompts // len(environment.tasks),
                "attempts": work.completions,
                "max_staleness": 1,
            },
            "sampling": {"max_prompt_tokens": _PROMPT_TOKENS, "max_response_tokens": work.response_tokens},
            "rollout": {
                "threads": settings.engine_threads,
                "max_sequences": work.prompts * work.completions,
                "max_open_tickets": 2 * work.prompts,
                "colocation": settings.colocation,
                "kv_cache_gib": settings.kv_cache_gib,
                "request_timeout_s": settings.timeout_s,
            },
            "learner": {"threads": settings.learner_threads},
            # The worker is stopped for long while others are measured.
            "stream": {"worker_timeout_s": settings.timeout_s, "batch_timeout_s": settings.timeout_s},
        }
    )
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
