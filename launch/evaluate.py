"""`primezero eval`: models on the fixed problem sets of bands of primes, with an engine each and nothing else.

It needs neither Ray nor DeepSpeed. Everything that can be refused is refused before an engine starts.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from launch.engine_noise import engine_noise
from launch.evaluation_report import BandReport, Report
from launch.evaluation_results import Compared, Outcome, problem_set
from launch.lengths import check_prompts
from launch.model_check import checked_chat
from launch.run_folder import CONFIG_FILE
from rollout.chat import ChatTokenizer
from rollout.engine import Engine
from rollout.environment import Environment, make_environment
from rollout.evaluation import Attempted, Decoding, attempt, evaluation_set
from shared.config import Config, EnvironmentConfig
from shared.episodes import Problem
from shared.errors import ConfigError

Bounds = tuple[int, int]
# In an exported model's folder.
PROMPTS_FILE = "primezero.toml"


@dataclass(frozen=True, slots=True)
class _Band:
    bounds: Bounds
    environment: Environment
    trainable: list[Problem]
    held_out: list[Problem]

    @property
    def name(self) -> str:
        return "{}..{}".format(*self.bounds)

    @property
    def problems(self) -> list[Problem]:
        return [*self.trainable, *self.held_out]


def parse_bands(text: str) -> tuple[Bounds, ...]:
    """From "2..13,5..101"; ConfigError when it is anything else."""
    bands = []
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", word.strip())
        if match is None or int(match[1]) > int(match[2]):
            raise ConfigError(f"--bands: {word!r} is not a band; write smallest and largest prime, as in 2..13,5..101")
        bands.append((int(match[1]), int(match[2])))
    return tuple(bands)


def model_config(model: Path) -> Path | None:
    """How the model was prompted in training: what its export says, else the configuration of the run it lies in."""
    places = [model / PROMPTS_FILE, model.resolve().parent / CONFIG_FILE]
    return next((path for path in places if path.is_file()), None)


def evaluate_models(
    config: Config, model: Path, *, baseline_model: Path | None = None, bands: Sequence[Bounds] = (), samples: int = 0
) -> Report:
    """Evaluate `model`, and `baseline_model` on the same problems.

    bands: ranges of primes; none: the configuration's own
    samples: attempts on each problem for pass@k, at `sampling.temperature`; 0: none

    Each model has an engine of its own, one after the other; all have ended when this returns or raises.
    Raises PrimezeroError for what a user can mend.
    """
    if samples < 0:
        raise ConfigError(f"--samples {samples}: it is the number of attempts on each problem, 0 for none")
    own = (config.environment.min_prime, config.environment.max_prime)
    sets = [_band(config.environment, bounds) for bounds in bands or [own]]
    models = [model] if baseline_model is None else [model, baseline_model]
    chats = [
        _checked_chat(folder, named_by, config, sets)
        for folder, named_by in zip(models, ("MODEL_FOLDER", "--baseline-model"), strict=False)
    ]
    outcomes = [
        asyncio.run(_evaluate(folder, chat, config, sets, samples)) for folder, chat in zip(models, chats, strict=True)
    ]
    return Report(
        model=str(model),
        baseline_model=None if baseline_model is None else str(baseline_model),
        dtype=config.model.dtype,
        max_response_tokens=config.sampling.max_response_tokens,
        problems_per_task=config.environment.evaluation_problems_per_task,
        samples=samples,
        temperature=config.sampling.temperature if samples else None,
        bands=[_report(band, of_models) for band, of_models in zip(sets, zip(*outcomes, strict=True), strict=True)],
    )


def _band(config: EnvironmentConfig, bounds: Bounds) -> _Band:
    # The set covers the whole band: a curriculum, which may not even fit into it, has no say.
    settings = config.model_dump() | dict(zip(("min_prime", "max_prime"), bounds, strict=True)) | {"curriculum": ()}
    name = "band {}..{}".format(*bounds)
    try:
        environment = make_environment(EnvironmentConfig.model_validate(settings))
    except ValidationError as error:
        reasons = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise ConfigError(f"{name}: {reasons}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    trainable, held_out = (
        evaluation_set(environment, config.evaluation_problems_per_task, held_out=which) for which in (False, True)
    )
    return _Band(bounds, environment, trainable, held_out)


def _checked_chat(model: Path, named_by: str, config: Config, bands: Sequence[_Band]) -> ChatTokenizer:
    """The model's tokenizer, once it is known that the model can be evaluated and every prompt fits."""
    chat = checked_chat(model, bands[0].environment, config, named_by)
    for band in bands:
        tokens = (len(chat.prompt_ids(band.environment.solver_prompt(problem))) for problem in band.problems)
        check_prompts(f"a solver's prompt for primes {band.name}", tokens, config.sampling)
    return chat


async def _evaluate(
    model: Path, chat: ChatTokenizer, config: Config, bands: Sequence[_Band], samples: int
) -> list[list[Outcome]]:
    """What the model makes of each band's problems, in their order."""
    _say(f"{model}: starting the engine")
    sampling = config.sampling
    with engine_noise() as noise:
        with noise.kept():
            engine = await Engine.start(
                model.resolve(),
                dtype=config.model.dtype,
                seed=config.run.seed,
                rollout=config.rollout,
                max_model_len=sampling.max_prompt_tokens + sampling.max_response_tokens,
                sync=config.sync,
                transport=config.transport,
            )
        try:
            return [await _attempt_band(engine, chat, config, band, samples, f"{model}") for band in bands]
        finally:
            await engine.shutdown()


async def _attempt_band(
    engine: Engine, chat: ChatTokenizer, config: Config, band: _Band, samples: int, model: str
) -> list[Outcome]:
    async def attempts(kind: str, count: int, temperature: float) -> list[Attempted]:
        _say(f"{model}: primes {band.name}, {len(band.problems)} problems, {kind}")
        decoding = Decoding(
            max_response_tokens=config.sampling.max_response_tokens,
            attempts=count,
            temperature=temperature,
            seed=config.run.seed,
            at_once=max(1, config.rollout.max_sequences // count),
        )
        name = f"{band.name}-{kind}"
        return await attempt(engine, band.environment, chat, band.problems, decoding, version=engine.version, name=name)

    greedy = [each.attempts[0] for each in await attempts("greedy", 1, 0.0)]
    if not samples:
        return [Outcome(each, ()) for each in greedy]
    sampled = await attempts(f"{samples} samples", samples, config.sampling.temperature)
    return [Outcome(each, more.attempts) for each, more in zip(greedy, sampled, strict=True)]


def _report(band: _Band, of_models: Sequence[Sequence[Outcome]]) -> BandReport:
    compared = [Compared(*each) for each in zip(band.problems, zip(*of_models, strict=True), strict=True)]
    cut = len(band.trainable)
    trainable, held_out = (problem_set(band.environment, part) for part in (compared[:cut], compared[cut:]))
    assert trainable is not None
    return BandReport(*band.bounds, trainable=trainable, held_out=held_out)


def _say(text: str) -> None:
    """Progress goes to stderr: stdout is the table's."""
    print(text, file=sys.stderr, flush=True)
