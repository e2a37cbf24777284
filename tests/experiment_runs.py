"""Finished runs for tests of the experiments: folders as training leaves them, and condensed data."""

from __future__ import annotations

import json
from pathlib import Path

from launch.experiments.data import EvaluationPoint, Health, RunData
from launch.model_recipe import CONFIG, ROOT
from launch.run_folder import CONFIG_FILE
from shared.config_file import dump_toml, load_config
from shared.episodes import Task


def metrics_record(step, *, proposes):
    task = {"accuracy": step / 1000, "valid": 0.5 if proposes else None, "distinct": 20 if proposes else 0}
    return {
        "step": step,
        "learner": {"entropy": 0.1 * step, "mismatch_mean": 1.25e-7},
        "tasks": dict.fromkeys(Task, task),
        "cells": {f"proposer/{name}": {"reward": 0.25} for name in Task if proposes},
        "staleness_mean": 0.5,
    }


def write_run(folder, config, accuracy=0.4):
    folder.mkdir(parents=True, exist_ok=True)
    steps, proposes = config.run.steps, config.selfplay.proposals_per_task > 0
    evaluations = [
        {"version": step, "tasks": {task: {"accuracy": accuracy} for task in Task}} for step in range(0, steps + 1, 10)
    ]
    metrics = [metrics_record(step, proposes=proposes) for step in range(1, steps + 1)]
    resolved = config.model_copy(
        update={"model": config.model.model_copy(update={"path": (ROOT / config.model.path).resolve()})}
    )
    (folder / CONFIG_FILE).write_text(dump_toml(resolved))
    for name, records in (("metrics", metrics), ("evaluations", evaluations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "summary.json").write_text(json.dumps({"steps": steps, "wall_s": 12.34, "episodes": 99 * steps}))


class FakePrimezero:
    """Stands in for the process: makes models and run folders, and remembers what it was asked for."""

    def __init__(self, failing=()):
        self.failing, self.calls = set(failing), []

    def __call__(self, arguments, log):
        command, *_ = arguments
        if command == "init-model":
            self.calls.append(Path(arguments[1]).name)
            return self.make_model(Path(arguments[1]))
        config = load_config(ROOT / CONFIG, arguments[3:])
        self.calls.append(config.run.name)
        if config.run.name in self.failing:
            return 1
        write_run(config.run_folder, config)
        return 0

    def make_model(self, folder):
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
            (folder / name).write_text(f"{name} of {folder.name}")
        return 0

    def trained(self):
        return [call for call in self.calls if not call.startswith("tiny-")]


def fabricated(run, accuracies, model="m"):
    steps = run.variant.steps
    windows = steps // 10
    assert len(accuracies) == windows + 1
    by_task = {task: [0.5] * windows for task in Task}
    return RunData(
        variant=run.variant.name,
        seed=run.seed,
        overrides=list(run.variant.overrides),
        command=f"primezero train of {run.name}",
        commit="0123456789abcdef0123456789abcdef01234567",
        model_sha256=f"{model}{run.seed}",
        steps=steps,
        wall_s=100.0,
        episodes=1000,
        evaluations=[
            EvaluationPoint(10 * i, {"deduction": a - 0.1, "abduction": a, "induction": a + 0.1})
            for i, a in enumerate(accuracies)
        ],
        health=Health(
            step=list(range(10, steps + 1, 10)),
            entropy=[0.3] * windows,
            mismatch=[1e-7] * windows,
            staleness=[0.25] * windows,
            valid=by_task,
            distinct=by_task,
            proposer_reward={task: [None] * windows for task in Task},
            solver_accuracy=by_task,
        ),
    )


def curve(last, steps=120):
    """0.3 throughout, then the last three evaluations at last − 0.05, last, last + 0.05: their mean is `last`."""
    return [0.3] * (steps // 10 - 2) + [last - 0.05, last, last + 0.05]
