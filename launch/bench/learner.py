"""`primezero bench learner`: what an update costs beside plain PyTorch, and what memory a step takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from launch.bench.benchmark import Benchmark, faultless
from launch.bench.models import SHAPES, BenchModel, bench_model
from launch.bench.report import Report, Result, machine
from launch.bench.rounds import in_turn, median_ratio, seconds
from launch.bench.settings import setting
from shared.config import LearnerConfig
from shared.errors import ConfigError

if TYPE_CHECKING:
    from learner.batch import TrainingBatch

_MEASURES = ("speed", "merging", "sharing", "memory")
_MOST_SHARED = 4096  # prompts that two numbers of 64 tell apart
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    model: str = setting("tiny", "a model folder, or a shape")
    vocabulary: int = setting(512, "tokens that a shape has")
    dtype: str = setting("float32", "of the weights; or bfloat16")
    measures: tuple[str, ...] = setting(_MEASURES, "what is measured, one or several")
    rounds: int = setting(5, "steps of each arm that are measured, after one that warms up")
    threads: int = setting(1, "CPU threads, as learner.threads")
    rows: int = setting(256, "of a batch, all distinct")
    prompt_tokens: int = setting(48, "median of a prompt")
    response_tokens: int = setting(96, "median of a response")
    spread: float = setting(0.6, "standard deviation of the logarithm of a response's length, twice that of a prompt's")
    max_tokens: int = setting(16384, "tokens in a packed micro-batch, as learner.max_tokens")
    padded_rows: tuple[str, ...] = setting(("2", "4", "8", "16", "32"), "rows of a padded micro-batch, the best counts")
    merged_rows: int = setting(800, "of the batch with equal rows")
    merged_distinct: int = setting(300, "how many of these are distinct")
    merged_prompt_tokens: int = setting(16, "median of a prompt there")
    merged_response_tokens: int = setting(5, "median of a response there")
    shared_prompts: int = setting(32, "of the batch whose prompts are shared")
    shared_attempts: int = setting(8, "responses to each prompt there")
    shared_prompt_tokens: int = setting(140, "median of a prompt there")
    own_prompt_tokens: int = setting(24, "of each prompt there, where they begin alike besides")
    memory_model: str = setting("qwen2.5-0.5b", "a shape, whose memory is measured in bfloat16")
    memory_rows: int = setting(6, "of a batch there")
    memory_vocabulary: int = setting(1024, "tokens of the one vocabulary")
    memory_large_vocabulary: int = setting(152064, "tokens of the other")


def bench_learner(settings: LearnerSettings, say: Say = lambda _: None) -> Report:
    """Run the benchmark; `say` is told what is being done. Raises ConfigError for impossible settings."""
    _check(settings)
    import torch

    from launch.bench.copying import torch_threads

    say(f"making the model {settings.model}")
    results: list[Result] = []
    with (
        nullcontext() if torch.cuda.is_available() else torch_threads(settings.threads),
        bench_model(settings.model, vocabulary=settings.vocabulary, dtype=settings.dtype) as model,
    ):
        arms = _Arms(settings, model)
        if "speed" in settings.measures:
            results += _speed(settings, arms, say)
        if "merging" in settings.measures:
            results += _merging(settings, arms, say)
        if "sharing" in settings.measures:
            results += _sharing(settings, arms, say)
        described = {
            "name": model.name,
            "parameters": arms.parameters,
            "vocabulary": model.vocabulary,
            "dtype": settings.dtype,
        }
        del arms
    if "memory" in settings.measures:
        results += _memory(settings, say)
    shown = {k: v for k, v in asdict(settings).items() if k not in ("model", "vocabulary", "dtype")}
    return Report(
        benchmark="learner",
        machine=machine(),
        model=described,
        settings=shown | {key: ",".join(shown[key]) for key in ("measures", "padded_rows")},
        results=tuple(results),
    )


def _check(settings: LearnerSettings) -> None:
    for what, value, known in (
        ("--measures", settings.measures, _MEASURES),
        ("--dtype", (settings.dtype,), ("bfloat16", "float32")),
        ("--memory-model", (settings.memory_model,), tuple(SHAPES)),
    ):
        if not value or (unknown := [name for name in value if name not in known]):
            raise ConfigError(f"{what} {','.join(unknown) if value else 'is empty'}: there is {', '.join(known)}")
    for key, least in asdict(settings).items():
        if isinstance(least, int) and least < 1:
            raise ConfigError(f"--{key.replace('_', '-')} must be at least 1")
    if settings.spread < 0:
        raise ConfigError("--spread must not be negative")
    if settings.shared_prompts * settings.shared_attempts > _MOST_SHARED:
        raise ConfigError(f"--shared-prompts times --shared-attempts must be {_MOST_SHARED} at most")
    if settings.merged_distinct > settings.merged_rows:
        raise ConfigError("--merged-distinct is more than --merged-rows")
    if not settings.padded_rows or not all(size.isdecimal() and int(size) for size in settings.padded_rows):
        raise ConfigError("--padded-rows must be numbers from 1, separated by commas")


class _Arms:
    """The policy, and batches for it."""

    def __init__(self, settings: LearnerSettings, model: BenchModel) -> None:
        from launch.bench.training_arms import make_policy

        self.model, self.dtype = model, settings.dtype
        self.config = LearnerConfig(threads=settings.threads, max_tokens=settings.max_tokens)
        self.policy = make_policy(model.folder, settings.dtype, self.config)
        self._spread = settings.spread

    @property
    def parameters(self) -> int:
        from math import prod

        return sum(prod(shape) for shape in self.policy.shapes.values())

    def batch(self, rows: int, distinct: int, prompt_tokens: int, response_tokens: int) -> TrainingBatch:
        from launch.bench.training_batch import made_batch

        return made_batch(
            rows=rows,
            distinct=distinct,
            prompt_tokens=prompt_tokens,
            response_tokens=response_tokens,
            spread=self._spread,
            vocabulary=self.model.vocabulary,
        )

    def train(self, batch: TrainingBatch) -> float:
        """Seconds of one update, metrics and all."""
        return seconds(lambda: self.policy.train(batch))


def _tokens(batch: TrainingBatch) -> int:
    return int((batch.prompt_lengths + batch.response_lengths).sum())


def _speed(settings: LearnerSettings, arms: _Arms, say: Say) -> list[Result]:
    from launch.bench.training_arms import BareLoop, PaddedLoop, plan_of

    batch = arms.batch(settings.rows, settings.rows, settings.prompt_tokens, settings.response_tokens)
    bare = BareLoop(arms.model.folder, arms.dtype, arms.config, batch)
    padded = PaddedLoop(arms.model.folder, arms.dtype, arms.config, batch)
    say("looking for the padded loop's best micro-batch")
    padded.choose_size([int(size) for size in settings.padded_rows])
    took = in_turn(
        {
            "policy": partial(arms.train, batch),
            "bare": partial(seconds, bare.train),
            "padded": partial(seconds, padded.train),
        },
        settings.rounds,
        say,
    )
    tokens = _tokens(batch)
    rate = {arm: tokens / statistics.median(values) for arm, values in took.items()}
    forwarded = sum(m.token_ids.numel() for own in plan_of(batch, arms.config).ranks for m in own)
    padding = padded.padded_tokens
    needed = tokens - len(batch)  # from the last token of a response nothing is predicted
    results = [
        _ratio("vs_bare", took, "bare", "the bare loop"),
        _ratio("vs_padded", took, "padded", f"a padded loop, {padded.size} rows at a time"),
        Result("padding_share", 1 - needed / forwarded, "", 1 - tokens / padding, "the padded loop"),
        Result("tokens_per_s", rate["policy"], "tokens/s", rate["bare"], "the bare loop"),
        Result("padded_tokens_per_s", rate["padded"], "tokens/s"),
        Result("padded_rows", padded.size, "rows"),
        Result("tokens", tokens, "tokens"),
        Result("micro_batches", len(plan_of(batch, arms.config).ranks[0]), ""),
        *(Result(f"{arm}_step", statistics.median(values), "s") for arm, values in took.items()),
    ]
    return results + _utilisation(arms, batch, rate["policy"] / tokens)


def _ratio(name: str, took: Mapping[str, Sequence[float]], reference: str, against: str) -> Result:
    """How many times as fast as the reference the policy is, the median over the rounds."""
    return Result(name, median_ratio(took[reference], took["policy"]), "", 1.0, against)


def _utilisation(arms: _Arms, batch: TrainingBatch, steps_per_s: float) -> list[Result]:
    from launch.bench.training_flops import model_flops, peak_flops

    peak = peak_flops(arms.dtype)
    if peak is None:
        return []
    reached = model_flops(arms.model.folder, arms.parameters, batch) * steps_per_s
    return [Result("mfu", reached / peak, "", 1.0, "the card's peak")]


def _merging(settings: LearnerSettings, arms: _Arms, say: Say) -> list[Result]:
    sizes = (settings.merged_prompt_tokens, settings.merged_response_tokens)
    equal = arms.batch(settings.merged_rows, settings.merged_distinct, *sizes)
    distinct = arms.batch(settings.merged_rows, settings.merged_rows, *sizes)
    say(f"merging: {settings.merged_rows} rows, {settings.merged_distinct} of them distinct")
    took = in_turn({"merged": partial(arms.train, equal), "distinct": partial(arms.train, distinct)}, settings.rounds)
    # By the token, since the batches' lengths are not drawn alike.
    per_token = {
        arm: [t / _tokens(batch) for t in took[arm]] for arm, batch in (("merged", equal), ("distinct", distinct))
    }
    share = settings.merged_distinct / settings.merged_rows
    return [
        Result(
            "merging", median_ratio(per_token["distinct"], per_token["merged"]), "", 1 / share, "rows / distinct rows"
        ),
        Result(
            "merged_step", statistics.median(took["merged"]), "s", statistics.median(took["distinct"]), "no merging"
        ),
    ]


def _sharing(settings: LearnerSettings, arms: _Arms, say: Say) -> list[Result]:
    from launch.bench.training_arms import plan_of
    from launch.bench.training_batch import shared_batch, with_common_beginnings, with_own_prompts

    shared = shared_batch(
        prompts=settings.shared_prompts,
        attempts=settings.shared_attempts,
        prompt_tokens=settings.shared_prompt_tokens,
        response_tokens=settings.response_tokens,
        spread=settings.spread,
        vocabulary=arms.model.vocabulary,
    )
    batches = {
        "shared": shared,
        "alone": with_own_prompts(shared),
        "alike": with_common_beginnings(shared, settings.own_prompt_tokens),
    }
    say(f"sharing: {settings.shared_attempts} responses to each of {settings.shared_prompts} prompts")
    took = in_turn({name: partial(arms.train, batch) for name, batch in batches.items()}, settings.rounds)
    computed = {name: plan_of(batch, arms.config).forward_tokens for name, batch in batches.items()}

    def compared(name: str, arm: str, reference: str) -> Result:
        fewer = computed[reference] / computed[arm]
        return Result(name, median_ratio(took[reference], took[arm]), "", fewer, "tokens computed")

    return [
        compared("sharing", "shared", "alone"),
        compared("beginnings", "alike", "shared"),
        Result("shared_step", statistics.median(took["shared"]), "s", statistics.median(took["alone"]), "no sharing"),
    ]


def _memory(settings: LearnerSettings, say: Say) -> list[Result]:
    from launch.bench.training_memory import step_memory

    sizes: dict[str, Any] = {
        "prompt_tokens": settings.prompt_tokens,
        "response_tokens": settings.response_tokens,
        "spread": settings.spread,
        "threads": settings.threads,
    }
    found = {}
    for vocabulary in (settings.memory_vocabulary, settings.memory_large_vocabulary):
        say(f"memory: a step of {settings.memory_model} with {vocabulary} tokens")
        found[vocabulary] = step_memory(
            settings.memory_model, "bfloat16", vocabulary, settings.memory_rows, max_tokens=settings.max_tokens, **sizes
        )
    small, large = found[settings.memory_vocabulary], found[settings.memory_large_vocabulary]
    against = f"a vocabulary of {settings.memory_vocabulary}"
    return [
        Result("peak_memory_vocab", large.beside / small.beside, "", 1.0, against),
        Result("peak_memory", large.peak / 2**20, "MiB", small.peak / 2**20, against),
        Result("memory_before", large.before / 2**20, "MiB", small.before / 2**20, against),
        Result("memory_own", large.own / 2**20, "MiB", small.own / 2**20, against),
    ]


BENCHMARK = Benchmark(
    "learner",
    "updates beside plain PyTorch",
    LearnerSettings,
    faultless(bench_learner),
    description="""\
What an update costs beside a bare loop and a padded one in plain PyTorch, what merging equal rows
saves, and what memory a step takes. docs/benchmarks.md explains every figure.
""",
    examples="""\
examples:
  primezero bench learner --json learner.json
  primezero bench learner --model qwen2.5-0.5b --dtype bfloat16 --vocabulary 2048 --rows 8 --measures speed
""",
)
