"""Whole self-play without an engine: what is trained must not depend on what comes early, late, short or long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from played_runs import PlayedRun, configured, play_run
from virtual_time import run_in_virtual_time

from learner.batch_metrics import batch_metrics
from shared.config import Config
from shared.episodes import ClosedTicket, Episode, Role, Verdict


def played(config: Config, *, delayed: bool) -> PlayedRun:
    """delayed: garbage ends at once, everything else takes its time, the longer the slower."""

    def delay(text: str) -> float:
        return 0.01 if not delayed or len(text) < 5 else 1 + 0.5 * len(text)

    return run_in_virtual_time(play_run(config, delay))


def fields(episode: Episode, *, versions: bool) -> tuple[object, ...]:
    return (
        episode.role,
        episode.task,
        episode.prompt_ids.tolist(),
        episode.response_ids.tolist(),
        episode.behaviour_logprobs.tolist(),
        episode.truncated,
        episode.verdict,
        episode.reward,
        episode.spans if versions else None,
    )


def statistics(tickets: Sequence[ClosedTicket]) -> dict[str, float]:
    episodes = [e for t in tickets for e in t.episodes]
    proposals = [e for e in episodes if e.role is Role.PROPOSER]
    return {
        "valid": float(np.mean([e.verdict is Verdict.VALID for e in proposals])),
        "proposer reward": float(np.mean([e.reward for e in proposals])),
        "solver reward": float(np.mean([e.reward for e in episodes if e.role is Role.SOLVER])),
        "response tokens": float(np.mean([len(e.response_ids) for e in episodes])),
    }


@pytest.mark.parametrize("solver_samples", ["attempts", "separate"])
@pytest.mark.parametrize("max_staleness", [0, 2])
def test_batches_are_the_same_whatever_takes_how_long(max_staleness, solver_samples):
    config = configured({"selfplay.max_staleness": max_staleness, "selfplay.solver_samples": solver_samples})
    instant, delayed = played(config, delayed=False), played(config, delayed=True)
    assert [t.id for t in instant.arrived] != [t.id for t in delayed.arrived]
    for ours, theirs in zip(instant.batches, delayed.batches, strict=True):
        assert ours.issued == theirs.issued
        assert [t.id for t in ours.tickets] == [t.id for t in theirs.tickets] == [t.id for t in ours.issued]
        # With staleness only the versions depend on timing.
        ours_read, theirs_read = ([fields(e, versions=max_staleness == 0) for e in b.episodes] for b in (ours, theirs))
        assert ours_read == theirs_read
        assert [t.solve_rate for t in ours.tickets] == [t.solve_rate for t in theirs.tickets]
        assert statistics(ours.tickets) == statistics(theirs.tickets)
        assert batch_metrics(theirs, attempts=4).staleness_max <= max_staleness
    assert instant.buffer.state() == delayed.buffer.state()


def test_batches_of_what_came_first_would_be_failures_and_brevity():
    """The test above can fail: the same tickets, cut into batches as they arrive, are another distribution."""
    run = played(configured({"selfplay.max_staleness": 2, "rollout.max_open_tickets": 90}), delayed=True)
    size = len(run.batches[0].tickets)
    first = statistics(run.arrived[:size])
    fair = statistics([t for batch in run.batches for t in batch.tickets])
    released = [statistics(batch.tickets) for batch in run.batches]
    for name, margin in (("valid", 0.2), ("proposer reward", 0.1), ("response tokens", 5)):
        assert first[name] < fair[name] - margin
        assert first[name] < min(batch[name] for batch in released)


@pytest.mark.parametrize("tasks", [("abduction",), ("deduction", "induction")])
def test_some_tasks_alone_are_played(tasks):
    run = played(configured({"environment.tasks": list(tasks)}), delayed=False)
    for batch in run.batches:
        assert Counter(ticket.id.batch for ticket in batch.tickets) == {batch.number: 10 * len(tasks)}
        assert {episode.task for episode in batch.episodes} == set(tasks)
        assert set(batch_metrics(batch, attempts=4).tasks) == set(tasks)
