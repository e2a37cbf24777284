"""Run folders as training leaves them: configuration, metrics, evaluations, journal, and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from characters import write_tokenizer

from learner.journal import JOURNAL, Began, Dropped, Journal, Released, Took
from shared.config_file import dump_toml, load_config
from shared.episodes import ClosedTicket, Episode, Problem, Role, Task, TicketId, Verdict, VersionSpan
from shared.ticket_wire import encode_ticket

PROMPT = "Find y with 3 * y = 1 (mod 7)"


def write_records(folder: Path, steps: int = 4, tasks: Sequence[Task] = tuple(Task), **changes: object) -> Path:
    """A run of so many steps, evaluated before and after each second one; `changes` to its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [f"--{key}={value}" for key, value in changes.items()]
    config = load_config(None, [f"--run.name={folder.name}", f"--run.steps={steps}", *overrides])
    (folder / "config.toml").write_text(dump_toml(config))
    write_lines(folder / "metrics.jsonl", [step_record(step, tasks) for step in range(1, steps + 1)])
    write_lines(folder / "evaluations.jsonl", [evaluation_record(step, tasks) for step in range(0, steps + 1, 2)])
    write_tokenizer(folder / "model")
    return folder


def write_lines(path: Path, records: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def step_record(step: int, tasks: Sequence[Task] = tuple(Task)) -> dict:
    task = {"accuracy": 0.5, "solve_rate_spread": 0.3, "distinct": 20 - step, "valid": 0.75}
    cell = {"episodes": 8, "reward": 0.25, "response_tokens": 6.0, "verdicts": {"correct": 0.5, "unparsable": 0.125}}
    return {
        "step": step,
        "wall_s": 2.0 * step,
        "learner": {
            "entropy": 0.5 / step,
            "gradient_norm": 0.1,
            "ratio_mean": 1.0,
            "importance_weight_mean": 0.999,
            "effective_sample_size": 0.98,
            "clip_fraction": 0.0,
            "importance_truncated_share": 0.01,
            "mismatch_mean": 1e-3,
            "mismatch_max": 0.5,
            "forward_tokens": 5000,
        },
        "cells": {f"{role}/{name}": cell for role in Role for name in tasks},
        "tasks": dict.fromkeys(tasks, task),
        "episodes": 100,
        "response_tokens": 600,
        "untrained_episodes": 0,
        "untrained_tokens": 0,
        "staleness_mean": 0.5,
        "staleness_max": 1,
        "sync": {"probe_difference": 1e-6},
        "phases": {"wait_s": 1.0, "train_s": 0.5, "sync_s": 0.5},
    }


def evaluation_record(version: int, tasks: Sequence[Task] = tuple(Task)) -> dict:
    result = {"problems": 10, "accuracy": 0.25 + version / 10, "unparsable": 0.0, "response_tokens": 5.0}
    return {
        "version": version,
        "tasks": dict.fromkeys(tasks, result),
        "held_out": {},
        "accuracy": 0.25 + version / 10,
        "held_out_accuracy": None,
        "wall_s": 1.0,
    }


def text_episode(
    role: Role, text: str, verdict: Verdict, reward: float, *, task: Task = Task.DEDUCTION, version: int = 0
) -> Episode:
    """One token a character, and one for the end; token i of the response has log-probability −i."""
    response = np.array([*map(ord, text), 0], dtype=np.int32)
    return Episode(
        role=role,
        task=task,
        prompt_ids=np.array([*map(ord, PROMPT)], dtype=np.int32),
        response_ids=response,
        behaviour_logprobs=-np.arange(len(response), dtype=np.float32),
        spans=(VersionSpan(version, 0, len(response)),),
        truncated=False,
        verdict=verdict,
        reward=reward,
    )


def text_ticket(
    batch: int,
    index: int,
    *,
    task: Task = Task.DEDUCTION,
    proposal: str = "3, 7",
    verdict: Verdict = Verdict.VALID,
    answers: Sequence[str] = ("5", "4"),
) -> ClosedTicket:
    """A proposal of 3 · y = 1 (mod 7), unless it says otherwise, and attempts at it; the answer 5 is right."""
    problem = Problem(task, "3,7", proposal, proposal, "5")
    valid, rate = verdict is Verdict.VALID, sum(answer == "5" for answer in answers) / len(answers)
    reward = {Verdict.VALID: 1 - rate if 0 < rate < 1 else 0.0, Verdict.UNPARSABLE: -1.0}.get(verdict, -0.5)
    attempts = tuple(
        text_episode(
            Role.SOLVER, answer, *((Verdict.CORRECT, 1.0) if answer == "5" else (Verdict.WRONG, -0.5)), task=task
        )
        for answer in answers
    )
    return ClosedTicket(
        id=TicketId(0, batch, index),
        proposal=text_episode(Role.PROPOSER, proposal, verdict, reward, task=task),
        proposed=problem if valid else None,
        problem=problem,
        attempts=attempts,
        solve_rate=rate,
    )


class WrittenJournal:
    """Writes a run's journal as its learner does."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / JOURNAL)
        self._sequence = 0

    def take(self, *tickets: ClosedTicket) -> list[int]:
        taken = []
        for ticket in tickets:
            taken.append((Took(ticket.id, 1, "rollout-0", 0), encode_ticket(self._sequence, ticket)))
            self._sequence += 1
        return self._journal.append_tickets(taken)

    def train(self, batch: int, *tickets: ClosedTicket, lineage: int = 0) -> None:
        self._journal.append(Released(lineage, batch, tuple(self.take(*tickets))))

    def drop(self, position: int, reason: str) -> None:
        self._journal.append(Dropped(position, reason))

    def begin(self, lineage: int, version: int) -> None:
        self._journal.append(Began(lineage, version))

    def close(self) -> None:
        self._journal.close()


def write_journal(folder: Path, steps: int = 4, tasks: Sequence[Task] = tuple(Task)) -> None:
    """A ticket of each task in every step; the proposals of all steps are different."""
    journal = WrittenJournal(folder)
    for batch in range(steps):
        journal.train(batch, *(text_ticket(batch, i, task=task, proposal=f"{batch}") for i, task in enumerate(tasks)))
    journal.close()
