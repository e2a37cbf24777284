"""Whole self-play with problems held out and a curriculum: what must not be trained on never comes near it."""

from __future__ import annotations

import random
import re

import pytest
from characters import CharacterChat
from played_runs import LARGEST, PRIMES, PlayedRun, configured, play_run
from virtual_time import run_in_virtual_time

from shared.episodes import Episode, Problem, Task, Verdict

WIDER, NARROW = 8, 13  # from that batch on primes above that one are open

Class = tuple[int, frozenset[int]]


def classes(task: Task, first: int, second: int) -> set[Class]:
    """(p, {x, y}) of every accepted answer to the problem that shows these two numbers, by trying all."""
    if task is Task.INDUCTION:
        above = [p for p in PRIMES if p > max(first, second)]
        return {(p, frozenset((first, second))) for p in above if first * second % p == 1 < first * second}
    return {(second, frozenset((first, n))) for n in range(1, second) if first * n % second == 1}


def classes_of(problem: Problem) -> set[Class]:
    first, second = map(int, problem.content.split(","))
    return classes(problem.task, first, second)


def problems_of(run: PlayedRun) -> dict[str, list[Problem]]:
    issued = [t for batch in run.batches for t in batch.issued]
    closed = [t for batch in run.batches for t in batch.tickets]
    return {
        "references": [p for t in issued for p in t.references],
        "fallbacks": [t.problem for t in issued],
        "proposed": [t.proposed for t in closed if t.proposed is not None],
        "attempted": [t.problem for t in closed],
        "buffer": [p for task in Task for p in run.buffer.sample(task, 10**6, random.Random(0))],
    }


@pytest.fixture(scope="module", params=["partial", "full"])
def held_out_run(request) -> PlayedRun:
    config = configured(
        {
            "run.steps": 20,
            "environment.proposal": request.param,
            "environment.held_out": 0.3,
            "environment.curriculum": [[WIDER, NARROW]],
            "rollout.max_open_tickets": 90,
        }
    )
    return run_in_virtual_time(play_run(config, lambda text: 0.0))


@pytest.fixture(scope="module")
def held_out_classes(held_out_run) -> set[Class]:
    """All that are, of any task: what the environment keeps for evaluation."""
    environment = held_out_run.environment
    return {
        name
        for task in Task
        for problem in environment.evaluation_problems(task, 10**5, seed=0, held_out=True)
        for name in classes_of(problem)
    }


def test_nothing_held_out_is_ever_shown_attempted_or_kept(held_out_run, held_out_classes):
    for place, problems in problems_of(held_out_run).items():
        assert len(problems) > 100, place
        assert not held_out_classes & {name for p in problems for name in classes_of(p)}, place


def stated_classes(proposal: Episode, largest: int) -> set[Class]:
    """What the proposal states, if that is a true equation for a prime up to `largest`; by reading its tokens."""
    text = CharacterChat().decode(proposal.response_ids.tolist())
    stated = [int(number) for number in re.findall(r"\d+", text)]
    if len(stated) == 3:  # a full proposal
        x, y, p = stated
        shown = {Task.DEDUCTION: (x, p), Task.ABDUCTION: (y, p), Task.INDUCTION: (x, y)}[proposal.task]
    elif len(stated) == 2:
        shown = stated
    else:
        return set()
    return {(p, pair) for p, pair in classes(proposal.task, *shown) if p <= largest}


def test_held_out_proposals_are_refused_as_such_and_nothing_else_is(held_out_run, held_out_classes):
    refused = 0
    for batch in held_out_run.batches:
        for issued, ticket in zip(batch.issued, batch.tickets, strict=True):
            if ticket.proposal is None:
                continue
            stated = stated_classes(ticket.proposal, largest=NARROW if batch.number < WIDER else LARGEST)
            assert (ticket.proposal.verdict is Verdict.HELD_OUT) == bool(stated & held_out_classes)
            if ticket.proposal.verdict is Verdict.HELD_OUT:
                assert (ticket.proposal.reward, ticket.proposed, ticket.problem) == (0.0, None, issued.problem)
                refused += 1
    assert refused > 30


def test_a_curriculum_opens_its_problems_at_its_batch_and_not_before(held_out_run):
    for batch in held_out_run.batches:
        shown = [p for t in batch.issued for p in (*t.references, t.problem)]
        attempted = [t.problem for t in batch.tickets]
        primes = {p for problem in (*shown, *attempted) for p, _ in classes_of(problem)}
        assert (max(primes) > NARROW) == (batch.number >= WIDER)
