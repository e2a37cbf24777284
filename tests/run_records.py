"""Lines of metrics.jsonl and evaluations.jsonl as a run writes them, with the numbers that matter to a test."""

from typing import Any

TASKS = ("abduction", "deduction", "induction")


def step_record(step: int, tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    return {
        "step": step,
        "wall_s": 2.0 * step,
        "learner": {
            "entropy": 0.5,
            "mismatch_mean": 1e-3,
            "forward_tokens": 3000,
            "mismatch_by_staleness": {"0": {"tokens": 10}},
            "reference_kl": None,
        },
        "cells": {f"{role}/{task}": {"reward": -0.25} for role in ("proposer", "solver") for task in tasks},
        "tasks": {task: {"accuracy": step / 100, "valid": None if step == 1 else 0.5} for task in tasks},
        "response_tokens": 8000,
        "untrained_tokens": 2000,
        "staleness_mean": 1.0,
        "memory": {"resident_bytes": 3 * 2**30},
        "phases": {"wait_s": 0.5, "train_s": 1.0, "sync_s": 0.5},
    }


def evaluation_record(version: int, tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    return {
        "version": version,
        "tasks": {task: {"accuracy": 0.5} for task in tasks},
        "accuracy": 0.5,
        "held_out_accuracy": None,
        "wall_s": 2.0 * version,
    }
