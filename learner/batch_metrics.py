"""What a released batch says about training, for metrics.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learner.collector import Batch
from shared.episodes import Episode, Role, Task, Verdict
from shared.rewards import expected_learnability


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
    """One task: the solver's accuracy and the proposer's health. Shares are None where there is nothing to share.

    accuracy, solve_rate_spread: mean and standard deviation of the tickets' solve rates
    distinct: distinct problems proposed
    of all proposals:
        valid: share that is VALID
        held_out: share refused as held out
        repeats: share whose problem an earlier ticket of the batch has proposed, however that is judged
    of the VALID proposals:
        variants: share made from a reference for free, that is, of a reference's family
        proposed_solve_rate, proposed_reward: means
        expected_learnability: q - q^n at their mean failure rate q: what n independent attempts at problems that
            all fail alike would earn, to compare with proposed_reward (for extreme_solve_rate 0, without extras)
    """

    accuracy: float
    solve_rate_spread: float
    distinct: int
    valid: float | None
    held_out: float | None
    repeats: float | None
    variants: float | None
    proposed_solve_rate: float | None
    proposed_reward: float | None
    expected_learnability: float | None


@dataclass(frozen=True, slots=True)
class BatchMetrics:
    """A batch. Staleness of a token: the version its batch is trained at, less its own.

    untrained_episodes, untrained_tokens: attempts that only estimated a solve rate (solver_samples "separate"), and
        their response tokens; nothing else counts them
    """

    cells: dict[str, CellMetrics]
    tasks: dict[str, TaskMetrics]
    episodes: int
    prompt_tokens: int
    response_tokens: int
    untrained_episodes: int
    untrained_tokens: int
    staleness_mean: float
    staleness_max: int
    mixed_kv: float


def batch_metrics(batch: Batch, *, attempts: int) -> BatchMetrics:
    """Summarise a batch as it was sampled; `attempts` at each valid proposal decided its reward."""
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
        tasks={task: _task(batch, task, attempts) for task in tasks},
        episodes=len(episodes),
        prompt_tokens=sum(len(e.prompt_ids) for e in episodes),
        response_tokens=int(lengths.sum()),
        untrained_episodes=sum(ticket.untrained_episodes for ticket in batch.tickets),
        untrained_tokens=sum(ticket.untrained_tokens for ticket in batch.tickets),
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


def _task(batch: Batch, task: Task, attempts: int) -> TaskMetrics:
    tickets = [(t, i) for t, i in zip(batch.tickets, batch.issued, strict=True) if i.task is task]
    rates = [t.solve_rate for t, _ in tickets]
    proposals = [t.proposal for t, _ in tickets if t.proposal is not None]
    proposed = [t.proposed.key for t, _ in tickets if t.proposed is not None]
    valid = [(t, i) for t, i in tickets if t.proposal is not None and t.proposal.verdict is Verdict.VALID]
    solve_rate = _mean([t.solve_rate for t, _ in valid])
    return TaskMetrics(
        accuracy=float(np.mean(rates)),
        solve_rate_spread=float(np.std(rates)),
        distinct=len(set(proposed)),
        valid=_mean([p.verdict is Verdict.VALID for p in proposals]),
        held_out=_mean([p.verdict is Verdict.HELD_OUT for p in proposals]),
        repeats=(len(proposed) - len(set(proposed))) / len(proposals) if proposals else None,
        variants=_mean([t.problem.family in {r.family for r in i.references} for t, i in valid]),
        proposed_solve_rate=solve_rate,
        proposed_reward=_mean([p.reward for p in proposals if p.verdict is Verdict.VALID]),
        expected_learnability=None if solve_rate is None else expected_learnability(1 - solve_rate, attempts),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
