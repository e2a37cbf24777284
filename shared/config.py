"""The configuration: one typed tree, read from TOML, overridden on the command line.

Precedence: command line (`--learner.lr 2e-6`), then the TOML file, then the defaults below. An
unknown key or an impossible value is a ConfigError that names the key, before anything starts.
Nothing is read from the environment.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
# TOML has no null: "none" stands for it.
PositiveOrNone = Annotated[
    Annotated[float, Field(gt=0)] | None, BeforeValidator(lambda value: None if value == "none" else value)
]


class Section(BaseModel):
    """A part of the tree: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    """The run as a whole."""

    name: str = Field("run", description="folder of this run inside `folder`")
    folder: Path = Field(Path("runs"), description="where runs are kept")
    overwrite: bool = Field(False, description="replace an earlier run of the same name")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random in the run")
    steps: int = Field(100, ge=0, description="batches to train on")
    time_limit_s: PositiveOrNone = Field(
        None, description="train no longer than this: finish the step, evaluate, export; none: no limit"
    )
    evaluate_every: Count = Field(20, description="steps between evaluations")
    final_evaluations: Count = Field(
        1, description="the last evaluations, the untrained model's not counted, averaged as accuracy_after"
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("must be a plain folder name: letters, digits, '.', '_', '-'")
        return name

    @model_validator(mode="after")
    def _final_evaluations_fit(self) -> Self:
        if self.final_evaluations > 1 and self.final_evaluations * self.evaluate_every > self.steps:
            raise ValueError(
                f"final_evaluations={self.final_evaluations} at evaluate_every={self.evaluate_every} "
                f"do not fit into steps={self.steps}"
            )
        return self


class ModelConfig(Section):
    """The language model that plays both roles."""

    path: Path = Field(Path("models/tiny"), description="a Hugging Face model folder")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the engine and the learner's forward")


class EnvironmentConfig(Section):
    """The problems: x·y ≡ 1 (mod p) for primes p in [min_prime, max_prime]."""

    name: Literal["prime_inversion"] = "prime_inversion"
    min_prime: int = Field(2, ge=2, description="smallest prime")
    max_prime: int = Field(13, ge=2, le=100_000, description="largest prime")
    text_after_answer: Literal["allowed", "unparsable"] = Field(
        "allowed",
        description="what a response is that goes on after its answer block; with a strong entropy bonus such text "
        "is a free place to be random in",
    )
    evaluation_problems_per_task: Count = Field(
        512, description="size of the fixed evaluation set; where fewer problems exist, all of them"
    )

    @model_validator(mode="after")
    def _range_holds_a_prime(self) -> Self:
        def is_prime(n: int) -> bool:
            return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))

        if not any(is_prime(n) for n in range(self.min_prime, self.max_prime + 1)):
            raise ValueError(f"no prime in [{self.min_prime}, {self.max_prime}]")
        return self


class RewardConfig(Section):
    """What a completion earns (method: rewards)."""

    correct: float = Field(1.0, description="solver: an accepted answer")
    wrong: float = Field(-0.5, description="solver: well formed, but not accepted")
    unparsable: float = Field(-1.0, description="either role: no answer in the asked format")
    invalid: float = Field(-0.5, description="proposer: well formed, but invalid, a copy, or a repeat")
    extreme_solve_rate: float = Field(0.0, description="proposer: valid, but solved always or never")
    length_penalty: float = Field(0.0, ge=0, description="either role: cost of each response token")
    permute_within_cell: bool = Field(
        False, description="control: shuffle the rewards within each (task, role), so that they teach nothing"
    )


class SelfPlayConfig(Section):
    """What one batch is made of."""

    proposals_per_task: int = Field(64, ge=0, description="proposal tickets per task and batch")
    buffer_problems_per_task: int = Field(0, ge=0, description="buffer tickets per task and batch")
    attempts: int = Field(8, ge=2, description="solver attempts on each problem")
    references: int = Field(6, ge=0, description="buffer problems shown to the proposer")
    repeat_in_batch: Literal["allow", "invalid"] = Field(
        "invalid", description="a problem proposed twice in a batch: every copy but the first earns `invalid`"
    )
    seed_problems_per_task: Count = Field(24, description="random valid problems that the buffer starts with")
    buffer_capacity: Count = Field(4096, description="problems kept per task; beyond it one leaves at random")
    max_staleness: int = Field(1, ge=0, le=16, description="versions that a trained token may lie behind")

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.proposals_per_task + self.buffer_problems_per_task == 0:
            raise ValueError("proposals_per_task and buffer_problems_per_task are both 0: a batch would be empty")
        if max(self.references, self.seed_problems_per_task) > self.buffer_capacity:
            raise ValueError("buffer_capacity is smaller than references or seed_problems_per_task")
        return self


class SamplingConfig(Section):
    """How the engine samples during training; both log-probabilities use the same temperature."""

    temperature: float = Field(1.0, gt=0, le=2)
    max_prompt_tokens: Count = Field(512, description="a longer prompt is refused, never cut")
    max_response_tokens: Count = Field(1024, description="a longer response is cut and counts as truncated")


class RolloutConfig(Section):
    """Rollout workers and their engines."""

    workers: Count = Field(1, description="rollout workers, each with its own engine")
    threads: Count = Field(1, description="CPU threads of each engine")
    max_sequences: Count = Field(256, description="sequences that an engine decodes at once")
    max_open_tickets: Count = Field(128, description="tickets that a worker works on at once")
    kv_cache_gib: Count = Field(1, description="attention cache of each engine on the CPU, GiB")
    block_size: int = Field(32, ge=32, multiple_of=32, description="tokens in a cache block")
    start_timeout_s: Seconds = Field(600, description="limit for an engine to load and start")
    request_timeout_s: Seconds = Field(600, description="limit for one completion")


class TrustRegionConfig(Section):
    """Clipping and the correction for the sampler being another engine, or an older policy."""

    clip_low: Share = 0.2
    clip_high: Annotated[float, Field(ge=0)] = 0.28
    importance_cap: PositiveOrNone = Field(
        2.0, description="cap C of truncated importance sampling; none switches the correction off"
    )


class LearnerConfig(Section):
    """The TRR++ update."""

    ranks: Count = Field(1, description="data-parallel learner processes")
    threads: Count = Field(1, description="CPU threads of each rank")
    zero_stage: Literal[0, 1, 2] = Field(1, description="DeepSpeed ZeRO stage")
    lr: float = Field(1e-6, ge=0, description="AdamW learning rate, constant after warm-up")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    optimizer_steps_per_batch: Count = Field(1, description="mini-batches that a batch is split into")
    max_tokens: Count = Field(16384, description="tokens in one packed micro-batch")
    logit_chunk_tokens: Count = Field(2048, description="tokens whose logits exist at once")
    entropy_coefficient: float = Field(0.001, ge=0, description="weight of the entropy bonus")
    entropy_target: PositiveOrNone = Field(
        None,
        description="entropy, nats a token, towards which the bonus fades linearly to nothing, judged by the batch "
        "before; none: the bonus is constant",
    )
    averaging: Literal["token", "sequence"] = Field("token", description="what the loss is a mean over")
    solver_row_weight: PositiveOrNone = Field(
        None, description="weight of solver rows in the loss and its denominator; none: 1 / attempts"
    )
    std_floor: float = Field(0.0, ge=0, description="lower bound of a cell's standard deviation")
    trust_region: TrustRegionConfig = TrustRegionConfig()


class SyncConfig(Section):
    """Pushing weights into the running engines."""

    every: Count = Field(1, description="batches between weight syncs")
    transport: Literal["shm"] = Field("shm", description="shm: shared memory, engine on the CPU")
    timeout_s: Seconds = Field(120, description="limit for each call of a sync")
    probe_tolerance: PositiveOrNone = Field(
        None, description="largest log-probability difference of the parity probe; none: by dtype"
    )


class StreamConfig(Section):
    """The ZeroMQ stream between rollout workers and learner."""

    max_message_mib: Count = Field(256, description="largest message accepted")
    batch_timeout_s: Seconds = Field(900, description="longest wait for a batch's next closed ticket")


class Config(Section):
    """Everything a run depends on."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    rewards: RewardConfig = RewardConfig()
    selfplay: SelfPlayConfig = SelfPlayConfig()
    sampling: SamplingConfig = SamplingConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    sync: SyncConfig = SyncConfig()
    stream: StreamConfig = StreamConfig()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        if self.selfplay.max_staleness < self.sync.every - 1:
            raise ValueError(
                f"selfplay.max_staleness={self.selfplay.max_staleness} is too small for "
                f"sync.every={self.sync.every}: it must be at least {self.sync.every - 1}"
            )
        if self.model.dtype == "bfloat16" and self.learner.zero_stage == 0:
            raise ValueError(
                "learner.zero_stage=0 with model.dtype=bfloat16 would add up gradients in bfloat16: use 1 or 2"
            )
        if self.run.evaluate_every % self.sync.every:
            raise ValueError(
                f"run.evaluate_every={self.run.evaluate_every} must be a multiple of sync.every={self.sync.every}: "
                "an evaluation runs on weights that have just been synced"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where this run keeps everything."""
        return self.run.folder / self.run.name

    @property
    def solver_row_weight(self) -> float:
        """The solver rows' weight, resolved."""
        weight = self.learner.solver_row_weight
        return 1 / self.selfplay.attempts if weight is None else weight

    @property
    def probe_tolerance(self) -> float:
        """The parity probe's threshold, resolved: absolute difference of log-probabilities, nats."""
        if self.sync.probe_tolerance is not None:
            return self.sync.probe_tolerance
        return {"float32": 1e-4, "bfloat16": 3e-2}[self.model.dtype]


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read the tree: defaults, then the TOML file, then `--section.key value` pairs.

    Raises ConfigError, naming the key, when a key is unknown or a value impossible.
    """
    tree = {} if path is None else _read_toml(path)
    for key, value in _pairs(overrides):
        _put(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'configuration'}: {_reason(e)}" for e in error.errors()]
        raise ConfigError("the configuration is not usable:\n" + "\n".join(lines)) from error


def dump_toml(config: Config) -> str:
    """The resolved tree as TOML; `load_config` reads it back to an equal tree."""

    def spelled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spelled(item) for key, item in value.items()}
        return "none" if value is None else value

    return tomli_w.dumps(spelled(config.model_dump(mode="json")))


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Every dotted key with its description."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys[prefix + name] = field.description or ""
    return keys


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    words = iter(overrides)
    for word in words:
        if not re.fullmatch(r"--[a-z][\w.]*(=.*)?", word, re.DOTALL):
            raise ConfigError(f"expected an override such as --learner.lr 2e-6, found {word!r}")
        key, separator, value = word[2:].partition("=")
        if not separator:
            following = next(words, None)
            if following is None:
                raise ConfigError(f"the override --{key} has no value")
            value = following
        pairs.append((key, value))
    return pairs


def _put(tree: dict[str, Any], key: str, value: str) -> None:
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {section} is a value, not a section")
    node[last] = _read_list(key, value) if value.startswith("[") else value


def _read_list(key: str, value: str) -> object:
    try:
        return tomllib.loads(f"list = {value}")["list"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{key}: {value!r} is not a list such as [0.9, 0.95]") from error


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if isinstance(error["input"], dict) else f"{message} (found {error['input']!r})"
