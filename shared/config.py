"""The configuration: one typed tree. `shared/config_file.py` reads and writes it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from shared.config_placement import PlacementConfig, is_loopback
from shared.config_records import MonitorConfig, TrackingConfig
from shared.config_section import (
    Beta,
    Count,
    GpuShareOrNone,
    PathOrNone,
    PositiveOrNone,
    Seconds,
    Section,
    Share,
)
from shared.limits import LOWEST_TEMPERATURE, MAX_EPISODES_PER_TICKET, MAX_REWARD, MAX_TOKENS_PER_TICKET, TOKEN_BYTES

MAX_STALENESS = 16
# What can carry weights, by placement, on any device.
_TRANSPORTS = {"colocated": ("shm", "ipc", "nccl"), "split": ("shm", "nccl"), "cluster": ("nccl",)}


class RunConfig(Section):
    """The run as a whole."""

    name: str = Field("run", description="folder of this run inside `folder`")
    folder: Path = Field(Path("runs"), description="where runs are kept")
    overwrite: bool = Field(
        False, description="replace an earlier run of the same name; otherwise it is resumed from its last checkpoint"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random in the run")
    steps: int = Field(100, ge=0, description="batches to train on")
    time_limit_s: PositiveOrNone = Field(
        None, description="train no longer than this: finish the step, evaluate, export; none: no limit"
    )
    evaluate_every: Count = Field(20, description="steps between evaluations")
    checkpoint_every: int = Field(20, ge=0, description="steps between checkpoints; 0: only one at the end")
    keep_checkpoints: Count = Field(2, description="checkpoints kept, the newest ones")
    max_restarts: int = Field(
        5,
        ge=0,
        description="restarts of one process, within ten minutes or without progress, after which the run is given up",
    )
    hang_timeout_s: float = Field(
        600,
        ge=30,
        description="a process that gives no sign of life for so long is ended and started again; longer than a "
        "micro-batch takes",
    )
    display: Literal["auto", "live", "plain", "quiet"] = Field(
        "auto",
        description="live: one panel that is kept up to date; plain: a line per step; quiet: restarts alone; auto: "
        "live on a terminal, else plain",
    )
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
    tasks: tuple[Literal["deduction", "abduction", "induction"], ...] = Field(
        ("deduction", "abduction", "induction"),
        description="the task types that are played, and evaluated",
    )
    min_prime: int = Field(2, ge=2, description="smallest prime")
    max_prime: int = Field(13, ge=2, le=100_000, description="largest prime")
    curriculum: tuple[tuple[int, int], ...] = Field(
        (),
        description="[[batch, max_prime], ...]: before that batch seeds and proposals stay up to that prime; "
        "afterwards max_prime holds",
    )
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of the residue classes (p, {x, y}) that are never trained on"
    )
    induction_pairs: int = Field(1, ge=1, le=8, description="pairs (x, y) shown in an induction problem")
    induction_held_out_pairs: int = Field(
        0,
        ge=0,
        le=8,
        description="further pairs that an induction answer must fit, not shown; no grade depends on them, since the "
        "pairs shown leave one prime",
    )
    prompts: Literal["instruct", "short"] = Field(
        "instruct", description="instruct: full instructions for an Instruct model; short: a line for the tiny model"
    )
    proposal: Literal["partial", "full"] = Field(
        "partial", description="what a proposer states: the parts that the solver is shown, or x, y and p"
    )
    swapped_is_copy: bool = Field(
        False, description="count (y, x, p) as the same problem as (x, y, p): as a copy, a repeat, a duplicate"
    )
    text_after_answer: Literal["allowed", "unparsable"] = Field(
        "allowed",
        description="what a response is that goes on after its answer block; with a strong entropy bonus such text "
        "is a free place to be random in",
    )
    evaluation_problems_per_task: Count = Field(
        512, description="size of the fixed evaluation set; where fewer problems exist, all of them"
    )

    @field_validator("tasks")
    @classmethod
    def _each_task_once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """In the order of the default, whatever they are written in: it decides the tickets' order."""
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError("names one task or more, each once")
        return tuple(task for task in cls.model_fields["tasks"].default if task in tasks)

    @model_validator(mode="after")
    def _range_holds_a_prime(self) -> Self:
        def is_prime(n: int) -> bool:
            return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))

        if not any(is_prime(n) for n in range(self.min_prime, self.max_prime + 1)):
            raise ValueError(f"no prime in [{self.min_prime}, {self.max_prime}]")
        return self

    @model_validator(mode="after")
    def _curriculum_grows(self) -> Self:
        stages = [(0, self.min_prime - 1), *self.curriculum, (2**63, self.max_prime)]
        if any(later <= batch or wider <= prime for (batch, prime), (later, wider) in pairwise(stages)):
            raise ValueError(
                f"curriculum={[list(stage) for stage in self.curriculum]}: batches must grow from 1, and primes from "
                f"min_prime={self.min_prime} to below max_prime={self.max_prime}"
            )
        return self


class RewardConfig(Section):
    """What a completion earns (method: rewards)."""

    correct: float = Field(1.0, description="solver: an accepted answer")
    wrong: float = Field(-0.5, description="solver: well formed, but not accepted")
    unparsable: float = Field(-1.0, description="either role: no answer in the asked format")
    invalid: float = Field(-0.5, description="proposer: well formed, but invalid, a copy, or a repeat")
    extreme_solve_rate: float = Field(0.0, description="proposer: valid, but solved always or never")
    length_penalty: float = Field(0.0, ge=0, description="either role: cost of each response token")
    answer_diversity_bonus: float = Field(
        0.0,
        ge=0,
        description="proposer: for a valid problem, times 1 - the share of the batch's valid problems of its task that "
        "have the same answer",
    )
    repeat_penalty: float = Field(
        1.0,
        ge=0,
        description="proposer, under repeat_in_batch=penalise: times the share of the batch's other valid problems of "
        "its task that are the same problem",
    )
    permute_within_cell: bool = Field(
        False, description="control: shuffle the rewards within each (task, role), so that they teach nothing"
    )


class SelfPlayConfig(Section):
    """What one batch is made of."""

    proposals_per_task: int = Field(64, ge=0, description="proposal tickets per task and batch")
    buffer_problems_per_task: int = Field(0, ge=0, description="buffer tickets per task and batch")
    attempts: int = Field(8, ge=2, lt=MAX_EPISODES_PER_TICKET, description="solver attempts on each problem")
    solver_samples: Literal["attempts", "separate"] = Field(
        "attempts",
        description="what trains the solver: all attempts; or, as in the paper, one separate sample a ticket, the "
        "attempts serving the proposer's reward alone",
    )
    train_proposer: bool = Field(True, description="whether proposals are trained on, or only made")
    references: int = Field(6, ge=0, description="buffer problems shown to the proposer")
    repeat_in_batch: Literal["allow", "penalise", "invalid"] = Field(
        "invalid",
        description="a problem proposed twice in a batch: no matter; all copies pay rewards.repeat_penalty; or every "
        "copy but the first earns rewards.invalid",
    )
    seed_problems_per_task: Count = Field(24, description="random valid problems that the buffer starts with")
    buffer_capacity: Count = Field(4096, description="problems kept per task; beyond it one leaves at random")
    max_staleness: int = Field(1, ge=0, le=MAX_STALENESS, description="versions that a trained token may lie behind")

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.proposals_per_task + self.buffer_problems_per_task == 0:
            raise ValueError("proposals_per_task and buffer_problems_per_task are both 0: a batch would be empty")
        if max(self.references, self.seed_problems_per_task) > self.buffer_capacity:
            raise ValueError("buffer_capacity is smaller than references or seed_problems_per_task")
        if not self.train_proposer and self.proposals_per_task and self.solver_samples == "separate":
            raise ValueError("train_proposer=false with solver_samples=separate would use the attempts for nothing")
        return self

    @property
    def trained_attempts(self) -> int:
        """Solver episodes that train, on each ticket's problem."""
        return self.attempts if self.solver_samples == "attempts" else 1


class SamplingConfig(Section):
    """How the engine samples during training; both log-probabilities use the same temperature."""

    temperature: float = Field(1.0, ge=LOWEST_TEMPERATURE, le=2, description="the engine samples at no lower one")
    max_prompt_tokens: Count = Field(512, description="a longer prompt is refused, never cut")
    max_response_tokens: Count = Field(1024, description="a longer response is cut and counts as truncated")


class RolloutConfig(Section):
    """Rollout workers and their engines."""

    workers: Count = Field(1, description="rollout workers, each with its own engine")
    threads: Count = Field(1, description="CPU threads of each engine")
    max_sequences: Count = Field(256, description="sequences that an engine decodes at once")
    max_open_tickets: Count = Field(
        512,
        description="tickets that a worker works on at once; a proposal is one sequence, so that fewer than twice "
        "max_sequences let the engine run dry when many end together",
    )
    colocation: Literal["concurrent", "alternate"] = Field(
        "concurrent", description="alternate: the engines sleep while the learner computes its update"
    )
    kv_cache_gib: Count = Field(1, description="attention cache of each engine on the CPU, GiB")
    gpu_memory_share: GpuShareOrNone = Field(
        None, description="part of its GPU that an engine may take; none: as `primezero plan` splits it"
    )
    gpu_cache_gib: PositiveOrNone = Field(
        None, description="attention cache of each engine on a GPU, GiB; none: what its share leaves for it"
    )
    block_size: int = Field(32, ge=32, multiple_of=32, description="tokens in a cache block")
    cuda_graphs: bool = Field(
        True,
        description="on a GPU, decode by replaying CUDA graphs, captured at the start, not kernel by kernel",
    )
    start_timeout_s: Seconds = Field(600, description="limit for an engine to load and start")
    request_timeout_s: Seconds = Field(600, description="limit for one completion")
    evaluation_timeout_s: Seconds = Field(3600, description="limit for an evaluation")


class TrustRegionConfig(Section):
    """Clipping and the correction for the sampler being another engine, or an older policy.

    With r = exp(logp_old - logp_behaviour) per token, the weight w of policy and KL terms is: none, 1; truncated,
    min(r, importance_cap); icepop, r inside the band and 0 outside; sequence_mask, min(r, importance_cap), and 0 for
    the whole of a sequence whose geometric mean of r is outside the band.
    """

    clip_low: Share = Field(0.2, description="the ratio is clipped below 1 - clip_low")
    clip_high: float = Field(0.28, ge=0, description="the ratio is clipped above 1 + clip_high")
    correction: Literal["truncated", "icepop", "sequence_mask", "none"] = Field(
        "truncated", description="how sampler and learner are reconciled"
    )
    importance_cap: float = Field(2.0, gt=0, description="cap C of truncated importance sampling")
    band_low: float = Field(0.5, gt=0, le=1, description="lower end of the band that is trained on")
    band_high: float = Field(5.0, ge=1, description="upper end of the band that is trained on")


class AdvantageConfig(Section):
    """How rewards become advantages within a (task, role) cell."""

    baseline: Literal["cell", "ema", "group"] = Field(
        "cell",
        description="cell: the batch's own mean and spread (TRR++); ema: running ones; group: for the solver, the mean "
        "of the attempts on one problem",
    )
    length_weighted: bool = Field(
        False, description="statistics over response tokens, as the reference code does, instead of sequences"
    )
    ema_decay: Beta = Field(0.95, description="of the running mean and variance")
    std_floor: float = Field(0.0, ge=0, description="lower bound of a cell's standard deviation")


class LearnerConfig(Section):
    """The TRR++ update."""

    ranks: Count = Field(1, description="data-parallel learner processes")
    threads: Count = Field(1, description="CPU threads of each rank")
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage; 3 splits the weights too")
    offload_optimizer: Literal["auto"] | bool = Field(
        "auto",
        description="keep the optimizer's states and master weights in the host's memory, and step there, under "
        "zero_stage 1 or 2; auto: where the GPU has no room for them otherwise",
    )
    gpu_memory_share: GpuShareOrNone = Field(
        None, description="part of its GPU that a rank may take at most; none: as `primezero plan` splits it"
    )
    lr: float = Field(1e-6, ge=0, description="AdamW learning rate, constant after warm-up")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    optimizer_steps_per_batch: Count = Field(1, description="mini-batches that a batch is split into")
    max_tokens: Count = Field(16384, description="tokens in one packed micro-batch")
    activation_checkpointing: bool = Field(
        False,
        description="keep what each layer is given instead of all that it computes, and compute it again in the "
        "backward pass: less memory for a third more time",
    )
    logit_chunk_mib: float = Field(
        128, gt=0, description="float32 logits that exist at once, twice, whatever the size of the vocabulary, MiB"
    )
    entropy_coefficient: float = Field(0.001, ge=0, description="weight of the entropy bonus")
    entropy_target: PositiveOrNone = Field(
        None,
        description="entropy, nats a token, towards which the bonus fades linearly to nothing, judged by the batch "
        "before; none: the bonus is constant",
    )
    averaging: Literal["token", "sequence"] = Field("token", description="what the loss is a mean over")
    solver_row_weight: PositiveOrNone = Field(
        None,
        description="weight of solver rows in the loss and its denominator; none: 1 / trained samples of a problem",
    )
    mask_truncated: bool = Field(
        False, description="leave responses that the length limit cut out of the loss and of the cells' statistics"
    )
    kl_coefficient: float = Field(
        0.0, ge=0, description="weight of KL(policy || reference); above 0 a reference model is loaded"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k2",
        description="k1: taken off the reward; k2, k3: added to the loss; on-policy k2 has the reverse KL's gradient",
    )
    reference_model: PathOrNone = Field(
        None, description="folder of the reference model; by default the model that training starts from"
    )
    advantage: AdvantageConfig = AdvantageConfig()
    trust_region: TrustRegionConfig = TrustRegionConfig()


class SyncConfig(Section):
    """Pushing weights into the running engines."""

    every: Count = Field(1, description="batches between weight syncs")
    transport: Literal["auto", "shm", "ipc", "nccl"] = Field(
        "auto",
        description="shm: shared memory, engines on the CPU of the learner's machine; ipc: CUDA IPC, engines on the "
        "learner's GPU; nccl: engines elsewhere (gloo on the CPU); auto: as the placement needs it",
    )
    in_flight: Literal["keep", "wait", "abort"] = Field(
        "keep",
        description="what becomes of running requests: frozen, and go on with the new weights; waited for; or aborted, "
        "and gone on with as new requests",
    )
    keep_kv: bool = Field(
        False,
        description="under in_flight=keep: running requests keep the attention cache of the older weights instead of "
        "being prefilled again; what they sample on it is marked mixed_kv",
    )
    buffer_mib: Count = Field(
        256,
        description="ipc, nccl: size of the packed buffer that weights travel in, or of the largest parameter where "
        "that is larger",
    )
    timeout_s: Seconds = Field(120, description="limit for each call of a sync")
    probe_tolerance: PositiveOrNone = Field(
        None,
        description="mean difference of log-probabilities of the parity probe, nats, beyond which a run ends where it "
        "is also ten times that of the first sync; none: by dtype",
    )


class StreamConfig(Section):
    """The ZeroMQ stream between rollout workers and learner."""

    endpoint: str = Field(
        "auto",
        description="where the learner listens; auto: a socket file that is this user's alone; or tcp://host:port, "
        "with keys that are made at launch",
    )
    max_message_mib: Count = Field(256, description="largest message accepted")
    batch_kib: Count = Field(1024, description="closed tickets leave a worker at once when so much has come together")
    batch_ms: float = Field(2, ge=0, le=1000, description="and otherwise so long after the first of them has closed")
    batch_timeout_s: Seconds = Field(900, description="longest wait for a batch's next closed ticket")
    worker_timeout_s: Seconds = Field(60, description="a worker not heard of for so long is given up")

    @model_validator(mode="after")
    def _batches_are_accepted(self) -> Self:
        if self.batch_kib > self.max_message_mib * 1024:
            raise ValueError(f"batch_kib={self.batch_kib} is more than max_message_mib={self.max_message_mib} lets in")
        return self

    @field_validator("endpoint")
    @classmethod
    def _one_address(cls, endpoint: str) -> str:
        if endpoint != "auto" and not _is_tcp_address(endpoint):
            raise ValueError("must be auto or tcp://host:port: one address of this machine, and a port from 1 to 65535")
        return endpoint


def _is_tcp_address(endpoint: str) -> bool:
    found = re.fullmatch(r"tcp://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})", endpoint)
    return found is not None and 0 < int(found[2]) < 2**16 and found[1] not in ("0.0.0.0", "[::]")


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
    placement: PlacementConfig = PlacementConfig()
    tracking: TrackingConfig = TrackingConfig()
    monitor: MonitorConfig = MonitorConfig()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        if self.selfplay.max_staleness < self.sync.every - 1:
            raise ValueError(
                f"selfplay.max_staleness={self.selfplay.max_staleness} is too small for "
                f"sync.every={self.sync.every}: it must be at least {self.sync.every - 1}"
            )
        if (largest := self.largest_reward) > MAX_REWARD:
            raise ValueError(
                f"rewards, with rewards.length_penalty for sampling.max_response_tokens, can come to {largest:g}, more "
                f"than {MAX_REWARD:g}: lower them; where advantages are normalised their scale is no matter"
            )
        episodes = self.selfplay.trained_attempts + 1
        tokens = episodes * (self.sampling.max_prompt_tokens + self.sampling.max_response_tokens)
        if tokens > (most := min(MAX_TOKENS_PER_TICKET, self.stream.max_message_mib * 2**20 // TOKEN_BYTES)):
            raise ValueError(
                f"a ticket of {episodes} episodes (selfplay.attempts) could have {tokens} tokens, more than the {most} "
                "that a message holds: raise stream.max_message_mib, or lower sampling.max_response_tokens"
            )
        if self.sync.keep_kv and self.sync.in_flight != "keep":
            raise ValueError(f"sync.keep_kv=true is for sync.in_flight=keep, not {self.sync.in_flight}")
        if self.model.dtype == "bfloat16" and self.learner.zero_stage == 0:
            raise ValueError("learner.zero_stage=0 with model.dtype=bfloat16 adds up gradients in bfloat16: use 1 to 3")
        if self.learner.offload_optimizer is True and self.learner.zero_stage not in (1, 2):
            raise ValueError(
                f"learner.offload_optimizer=true is for learner.zero_stage=1 or 2, not {self.learner.zero_stage}"
            )
        engines, rank = self.rollout.gpu_memory_share, self.learner.gpu_memory_share
        if engines and rank and self.placement.kind == "colocated" and self.rollout.workers * engines + rank > 1:
            raise ValueError(
                f"rollout.gpu_memory_share={engines} for rollout.workers={self.rollout.workers} and "
                f"learner.gpu_memory_share={rank} are more than one GPU: lower one, or leave them to the plan (none)"
            )
        if self.run.checkpoint_every % self.sync.every:
            raise ValueError(
                f"run.checkpoint_every={self.run.checkpoint_every} must be a multiple of sync.every={self.sync.every}: "
                "a resumed run begins by syncing what it has"
            )
        if self.learner.advantage.baseline == "group" and self.selfplay.trained_attempts == 1:
            raise ValueError(
                "learner.advantage.baseline=group compares the attempts on one problem: it needs "
                "selfplay.solver_samples=attempts"
            )
        if self.run.evaluate_every % self.sync.every:
            raise ValueError(
                f"run.evaluate_every={self.run.evaluate_every} must be a multiple of sync.every={self.sync.every}: "
                "an evaluation runs on weights that have just been synced"
            )
        if self.sync.transport not in ("auto", *_TRANSPORTS[self.placement.kind]):
            raise ValueError(
                f"sync.transport={self.sync.transport} is not for placement.kind={self.placement.kind}: use "
                f"{' or '.join(_TRANSPORTS[self.placement.kind])}, or auto"
            )
        address = self.placement.ray_address
        host = self.stream.endpoint.removeprefix("tcp://").rpartition(":")[0]
        if address is not None and is_loopback(host) and not is_loopback(address.rpartition(":")[0]):
            raise ValueError(
                f"stream.endpoint={self.stream.endpoint} cannot be reached from the other machines: use an address of "
                "this machine that can, or auto"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where this run keeps everything."""
        return self.run.folder / self.run.name

    @property
    def largest_reward(self) -> float:
        """No episode's reward is further from 0."""
        rewards = self.rewards
        outcomes = (rewards.correct, rewards.wrong, rewards.unparsable, rewards.invalid, rewards.extreme_solve_rate, 1)
        lengths = rewards.length_penalty * self.sampling.max_response_tokens
        return max(map(abs, outcomes)) + lengths + rewards.answer_diversity_bonus + rewards.repeat_penalty

    @property
    def solver_row_weight(self) -> float:
        """The solver rows' weight, resolved."""
        weight = self.learner.solver_row_weight
        return 1 / self.selfplay.trained_attempts if weight is None else weight

    @property
    def transport(self) -> Literal["shm", "ipc", "nccl"]:
        """The weight transport, resolved by placement and device."""
        if self.sync.transport != "auto":
            return self.sync.transport
        if self.placement.kind == "cluster":
            return "nccl"
        if self.placement.resolved_device == "cpu":
            return "shm"
        return "ipc" if self.placement.kind == "colocated" else "nccl"

    @property
    def doubtful(self) -> list[str]:
        """What is allowed, and hardly meant: a line each."""
        lines = []
        if self.learner.trust_region.correction == "none" and self.selfplay.max_staleness:
            lines.append(
                "learner.trust_region.correction=none: nothing corrects for samples of older weights, which "
                f"selfplay.max_staleness={self.selfplay.max_staleness} lets in; truncated does"
            )
        return lines

    @property
    def probe_tolerance(self) -> float:
        """The parity probe's threshold, resolved: mean absolute difference of log-probabilities, nats."""
        if self.sync.probe_tolerance is not None:
            return self.sync.probe_tolerance
        # Weights are compared to the bit before. What is left is rounding: in bfloat16 up to 0.1 have been seen, of a
        # sound engine with a model of 30 layers.
        return {"float32": 0.01, "bfloat16": 0.5}[self.model.dtype]
