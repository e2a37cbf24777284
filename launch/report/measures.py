"""What a report shows of a run: each figure's lines, and where their values stand in the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from launch.run_records import Record, RunRecords, number
from shared.episodes import Role, Task

Measure = Callable[[Record], float | None]
MEAN = "mean of tasks"


@dataclass(frozen=True, slots=True)
class Curve:
    """A line over training steps; None where nothing was there to be measured."""

    label: str
    steps: list[int]
    values: list[float | None]

    @property
    def empty(self) -> bool:
        """Whether nothing was measured at all."""
        return all(value is None for value in self.values)


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure, for one run or for several.

    key: name of its file; unit: label of the vertical axis, with its unit; says: a sentence or two for the reader
    lines: label → measure; where a comparison shows one line a run, it is the mean of those that are there
    of: the records that hold the values; each batch's are noisy and smoothed, evaluations are not
    limits: of the vertical axis, where it has natural ones; scale: "log" for what spans powers of ten
    """

    key: str
    title: str
    unit: str
    says: str
    lines: Mapping[str, Measure]
    of: Literal["steps", "evaluations"] = "steps"
    limits: tuple[float, float] | None = None
    scale: Literal["linear", "log"] = "linear"
    compared: Sequence[str] = ()

    @property
    def what_is_compared(self) -> str:
        """What a run's line in a comparison shows."""
        of = "tasks" if set(self.lines) <= set(Task) else " and ".join(self.lines)
        return ", ".join(self.compared) or f"mean of {of}"

    def curves(self, run: RunRecords) -> list[Curve]:
        """A line for each measure that was recorded."""
        records, key = (run.steps, "step") if self.of == "steps" else (run.evaluations, "version")
        known = [(int(step), record) for record in records if (step := number(record, key)) is not None]
        steps = [step for step, _ in known]
        curves = [
            Curve(label, steps, [measure(record) for _, record in known]) for label, measure in self.lines.items()
        ]
        return [curve for curve in curves if not curve.empty]

    def told_apart(self, run: RunRecords) -> list[Curve]:
        """The same, without a mean of tasks that would hide the only task it is of."""
        curves = self.curves(run)
        alone = sum(curve.label in set(Task) for curve in curves) == 1
        return [curve for curve in curves if not (alone and curve.label == MEAN)]

    def combined(self, run: RunRecords) -> Curve | None:
        """One line for the run, under its name; None where nothing was recorded."""
        curves = [curve for curve in self.curves(run) if not self.compared or curve.label in self.compared]
        if not curves:
            return None
        at_each_step = zip(*(curve.values for curve in curves), strict=True)
        return Curve(run.name, curves[0].steps, [_mean(values) for values in at_each_step])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _at(*path: str) -> Measure:
    return lambda record: number(record, *path)


def _by_task(section: str, *path: str) -> dict[str, Measure]:
    return {str(task): _at(section, task, *path) for task in Task}


def _by_cell(role: Role, *path: str) -> dict[str, Measure]:
    return {str(task): _at("cells", f"{role}/{task}", *path) for task in Task}


def step_seconds(record: Record) -> float | None:
    """How long a step took, its evaluation, sync and checkpoint included; None where that is not on record."""
    phases = record.get("phases")
    total = sum(number(phases, phase) or 0.0 for phase in phases) if isinstance(phases, Mapping) else 0.0
    return total or None


def _generated_per_second(record: Record) -> float | None:
    seconds, tokens = step_seconds(record), number(record, "response_tokens")
    untrained = number(record, "untrained_tokens") or 0.0
    return None if seconds is None or tokens is None else (tokens + untrained) / seconds


def _trained_per_second(record: Record) -> float | None:
    seconds, tokens = number(record, "phases", "train_s"), number(record, "learner", "forward_tokens")
    return None if not seconds or tokens is None else tokens / seconds


def _unparsable(role: Role) -> Measure:
    def measure(record: Record) -> float | None:
        cells = [("cells", f"{role}/{task}") for task in Task]
        there = [cell for cell in cells if number(record, *cell, "episodes")]
        return _mean([number(record, *cell, "verdicts", "unparsable") or 0.0 for cell in there])

    return measure


def _length(role: Role) -> Measure:
    lengths = _by_cell(role, "response_tokens")
    return lambda record: _mean([measure(record) for measure in lengths.values()])


_SHARE = (-0.02, 1.02)

PLOTS = (
    Plot(
        "accuracy",
        "Solver accuracy, greedy",
        "accuracy, share of problems",
        "Greedy decoding on the fixed evaluation problems; step 0 is the model that training began with.",
        _by_task("tasks", "accuracy") | {MEAN: _at("accuracy"), "held out, mean": _at("held_out_accuracy")},
        of="evaluations",
        limits=_SHARE,
        compared=(MEAN,),
    ),
    Plot(
        "proposer-reward",
        "Proposer reward",
        "reward, mean of a batch",
        "What proposals earn: 1 − solve rate for a valid problem that is solved sometimes, less than 0 for no problem.",
        _by_cell(Role.PROPOSER, "reward"),
    ),
    Plot(
        "solver-accuracy",
        "Solver accuracy while training, sampled",
        "solve rate, share of attempts",
        "At the training temperature, on the problems of each batch: what the proposer makes, and the buffer's.",
        _by_task("tasks", "accuracy"),
        limits=_SHARE,
    ),
    Plot(
        "solver-reward",
        "Solver reward",
        "reward, mean of a batch",
        "1 for an accepted answer, −0.5 for another, −1 for none in the asked format, unless configured otherwise.",
        _by_cell(Role.SOLVER, "reward"),
    ),
    Plot(
        "valid-proposals",
        "Valid proposals",
        "share of proposals",
        "New problems that the environment accepts, neither copied from the prompt nor proposed before in the batch.",
        _by_task("tasks", "valid"),
        limits=_SHARE,
    ),
    Plot(
        "solve-rate-spread",
        "Spread of solve rates",
        "standard deviation of solve rates",
        "Over the problems of a batch. At 0 all problems are equally hard; 0.5 is the most: half never, half always "
        "solved.",
        _by_task("tasks", "solve_rate_spread"),
        limits=(-0.01, 0.51),
    ),
    Plot(
        "distinct-problems",
        "Distinct problems proposed",
        "problems a batch",
        "A proposer that collapses repeats itself.",
        _by_task("tasks", "distinct"),
    ),
    Plot(
        "unparsable",
        "Unparsable responses",
        "share of responses",
        "Those without an answer in the asked format; mean of the tasks.",
        {"proposer": _unparsable(Role.PROPOSER), "solver": _unparsable(Role.SOLVER)},
    ),
    Plot(
        "response-length",
        "Response length",
        "tokens, mean of a batch",
        "Mean of the tasks; the stop token counts.",
        {"proposer": _length(Role.PROPOSER), "solver": _length(Role.SOLVER)},
    ),
    Plot(
        "entropy",
        "Entropy",
        "nats a token",
        "Of the policy over the whole vocabulary at the sampling temperature, on the tokens trained on.",
        {"entropy": _at("learner", "entropy")},
    ),
    Plot(
        "ratio",
        "Ratio and importance weight",
        "ratio",
        "Means over tokens: ρ of the policy to the one before the batch, exactly 1 with one optimizer step a batch; "
        "w of the learner to the sampler, truncated.",
        {
            "ρ, policy ratio": _at("learner", "ratio_mean"),
            "w, importance weight": _at("learner", "importance_weight_mean"),
        },
        compared=("w, importance weight",),
    ),
    Plot(
        "corrected",
        "Clipped, truncated, effective",
        "share of tokens",
        "Tokens whose gradient the clip took away; tokens whose weight was cut to its cap; effective sample size.",
        {
            "clipped": _at("learner", "clip_fraction"),
            "truncated": _at("learner", "importance_truncated_share"),
            "effective sample size": _at("learner", "effective_sample_size"),
        },
        limits=_SHARE,
        compared=("effective sample size",),
    ),
    Plot(
        "staleness",
        "Staleness",
        "versions behind",
        "How many weight versions lie between the sampler of a token and its training.",
        {"mean of tokens": _at("staleness_mean"), "largest": _at("staleness_max")},
        compared=("mean of tokens",),
    ),
    Plot(
        "mismatch",
        "Mismatch of sampler and learner",
        "|difference of log-probabilities|, nats",
        "Mean and largest over the tokens of a batch, staleness included; and of the probe text after each weight "
        "sync, which is at the same version on both sides, beside what it was after a worker's first sync.",
        {
            "mean of tokens": _at("learner", "mismatch_mean"),
            "largest": _at("learner", "mismatch_max"),
            "probe after a sync": _at("sync", "probe_difference"),
            "probe after a worker's first sync": _at("sync", "probe_difference_first"),
        },
        scale="log",
        compared=("mean of tokens",),
    ),
    Plot(
        "gradient-norm",
        "Gradient norm",
        "norm, before clipping",
        "Largest of the batch's optimizer steps.",
        {"gradient norm": _at("learner", "gradient_norm")},
    ),
    Plot(
        "throughput",
        "Throughput",
        "tokens a second",
        "Response tokens of a batch by the whole time of its step; and tokens through the learner by the time of its "
        "update alone.",
        {"generated, whole step": _generated_per_second, "learner's update alone": _trained_per_second},
        compared=("generated, whole step",),
    ),
)
