"""From judged attempts to the report's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from launch.evaluation_report import Estimate, Group, ProblemSet, Result, Row
from rollout.environment import Environment
from rollout.evaluation import Attempt
from shared.episodes import Problem, Task, Verdict
from shared.statistics import mean_interval, paired_difference_interval, pass_at_k, wilson_interval

K = TypeVar("K", str, int)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model on one problem: its greedy attempt, and the samples."""

    greedy: Attempt
    samples: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """A problem, and what each model made of it: the model first, then the baseline model, if any."""

    problem: Problem
    outcomes: tuple[Outcome, ...]


def problem_set(environment: Environment, compared: Sequence[Compared]) -> ProblemSet | None:
    """The report on these problems; None where there are none."""
    if not compared:
        return None
    slices: dict[str, list[Compared]] = {}
    for each in compared:
        for name in environment.slices(each.problem):
            slices.setdefault(name, []).append(each)
    return ProblemSet(_group(environment, compared), {n: _group(environment, part) for n, part in slices.items()})


def _group(environment: Environment, compared: Sequence[Compared]) -> Group:
    by_task: dict[Task, list[Compared]] = {}
    for each in compared:
        by_task.setdefault(each.problem.task, []).append(each)
    rows = {str(task): _row(environment, part) for task, part in by_task.items()}
    return Group(rows, _mean_row(list(rows.values())))


def _row(environment: Environment, compared: Sequence[Compared]) -> Row:
    model, *others = ([each.outcomes[i] for each in compared] for i in range(len(compared[0].outcomes)))
    return Row(
        problems=len(compared),
        baselines=environment.baselines([each.problem for each in compared]),
        model=_result(model),
        baseline_model=_result(others[0]) if others else None,
        difference=_difference(model, others[0]) if others else None,
    )


def _result(outcomes: Sequence[Outcome]) -> Result:
    greedy, count = [outcome.greedy for outcome in outcomes], len(outcomes)
    correct = sum(attempt.correct for attempt in greedy)
    return Result(
        accuracy=Estimate(correct / count, *wilson_interval(correct, count)),
        unparsable=sum(attempt.verdict is Verdict.UNPARSABLE for attempt in greedy) / count,
        truncated=sum(attempt.truncated for attempt in greedy) / count,
        response_tokens=sum(attempt.response_tokens for attempt in greedy) / count,
        pass_at=_pass_at([outcome.samples for outcome in outcomes]),
    )


def _pass_at(samples: Sequence[Sequence[Attempt]]) -> dict[int, float]:
    """For k each power of two up to the number of samples, and that number."""
    n = len(samples[0])
    correct = [sum(attempt.correct for attempt in each) for each in samples]
    ks = sorted({2**i for i in range(n.bit_length())} | {n}) if n else []
    return {k: fmean([pass_at_k(n, c, k) for c in correct]) for k in ks}


def _difference(first: Sequence[Outcome], second: Sequence[Outcome]) -> Estimate:
    pairs = [(a.greedy.correct, b.greedy.correct) for a, b in zip(first, second, strict=True)]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    interval = paired_difference_interval(only_first, only_second, len(pairs))
    return Estimate((only_first - only_second) / len(pairs), *interval)


def _mean_row(rows: Sequence[Row]) -> Row:
    baseline_models = [row.baseline_model for row in rows if row.baseline_model is not None]
    differences = [row.difference for row in rows if row.difference is not None]
    return Row(
        problems=sum(row.problems for row in rows),
        baselines=_mean_by_key([row.baselines for row in rows]),
        model=_mean_result([row.model for row in rows]),
        baseline_model=_mean_result(baseline_models) if baseline_models else None,
        difference=_mean_estimate(differences) if differences else None,
    )


def _mean_result(results: Sequence[Result]) -> Result:
    return Result(
        accuracy=_mean_estimate([result.accuracy for result in results]),
        unparsable=fmean([result.unparsable for result in results]),
        truncated=fmean([result.truncated for result in results]),
        response_tokens=fmean([result.response_tokens for result in results]),
        pass_at=_mean_by_key([result.pass_at for result in results]),
    )


def _mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    interval = mean_interval([(e.value, e.low, e.high) for e in estimates])
    return Estimate(fmean([e.value for e in estimates]), *interval)


def _mean_by_key(mappings: Sequence[Mapping[K, float]]) -> dict[K, float]:
    """Of the keys that all have, in the order of the first."""
    shared = [key for key in mappings[0] if all(key in mapping for mapping in mappings)]
    return {key: fmean([mapping[key] for mapping in mappings]) for key in shared}
