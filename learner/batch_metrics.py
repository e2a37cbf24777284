"""What a released batch says about training, for metrics.jsonl."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from learner.collector import Batch
from shared.episodes import Episode, Role, Task, Verdict


@dataclass(frozen=True, slots=True)
class CellMetrics:
    """One (role, task) cell: episodes, their mean reward and length, and the share of each verdict."""

    episodes: int
    reward: float
    response_tokens: float
    truncated: float
    verdicts: dict[str, float]


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """One task: the solver's accuracy and the proposer's health.

    valid: share of proposals that are valid, new in the batch, and no copies; None without proposals
    distinct: distinct valid problems proposed
    accuracy, solve_rate_spread: mean and standard deviation of the tickets' solve rates
    """

    accuracy: float
    valid: float | None
    distinct: int
    solve_rate_spread: float


@dataclass(frozen=True, slots=True)
class BatchMetrics:
    """A batch. Staleness of a token: the version its batch is trained at, less its own."""

    cells: dict[str, CellMetrics]
    tasks: dict[str, TaskMetrics]
    episodes: int
    prompt_tokens: int
    response_tokens: int
    staleness_mean: float
    staleness_max: int
    mixed_kv: float


def batch_metrics(batch: Batch) -> BatchMetrics:
    """Summarise a batch as it was sampled."""
    episodes = batch.episodes
    tasks = sorted({e.task for e in episodes})
    by_cell = {
        f"{role}/{task}": cell
        for role in Role
        for task in tasks
        if (cell := [e for e in episodes if e.role is role and e.task is task])
    }
    spans = [span for e in episodes for span in e.spans]
    lengths = np.array([span.end - span.start for span in spans])
    staleness = np.array([batch.number - span.version for span in spans])
    return BatchMetrics(
        cells={name: _cell(cell) for name, cell in by_cell.items()},
        tasks={task: _task(batch, task) for task in tasks},
        episodes=len(episodes),
        prompt_tokens=sum(len(e.prompt_ids) for e in episodes),
        response_tokens=int(lengths.sum()),
        staleness_mean=float((staleness * lengths).sum() / lengths.sum()),
        staleness_max=int(staleness.max()),
        mixed_kv=float(lengths[[span.mixed_kv for span in spans]].sum() / lengths.sum()),
    )


def _cell(episodes: list[Episode]) -> CellMetrics:
    verdicts = Counter(e.verdict for e in episodes)
    return CellMetrics(
        episodes=len(episodes),
        reward=float(np.mean([e.reward for e in episodes])),
        response_tokens=float(np.mean([len(e.response_ids) for e in episodes])),
        truncated=float(np.mean([e.truncated for e in episodes])),
        verdicts={verdict.value: count / len(episodes) for verdict, count in sorted(verdicts.items())},
    )


def _task(batch: Batch, task: Task) -> TaskMetrics:
    tickets = [t for t in batch.tickets if t.problem.task is task]
    proposals = [t.proposal for t in tickets if t.proposal is not None]
    rates = [t.solve_rate for t in tickets]
    return TaskMetrics(
        accuracy=float(np.mean(rates)),
        valid=float(np.mean([p.verdict is Verdict.VALID for p in proposals])) if proposals else None,
        distinct=len({t.proposed.key for t in tickets if t.proposed is not None}),
        solve_rate_spread=float(np.std(rates)),
    )
