"""Whole runs through the real engine, stream, learner and Ray, as a user starts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shared.config import EnvironmentConfig
from shared.config_file import load_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "launch/configs/cpu_demo.toml"
SMALL = {
    "run.steps": 5,
    "run.evaluate_every": 2,
    "run.final_evaluations": 1,
    "selfplay.proposals_per_task": 4,
    "selfplay.buffer_problems_per_task": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from launch.tiny_model import TinyModelSettings, make_tiny_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(folder, EnvironmentConfig(prompts="short"), settings=TinyModelSettings(steps=30), seed=0)
    return folder


class Run:
    """A `primezero train` of its own; every process it starts carries its mark."""

    def __init__(self, folder: Path, model: Path, **overrides: object) -> None:
        self.folder = folder / "test-run"
        # Short, for the sockets in it.
        self.temporary = Path(tempfile.mkdtemp(prefix="pz", dir="/tmp"))
        self._mark = f"PRIMEZERO_TEST={uuid.uuid4().hex}"
        settings = SMALL | {"run.folder": folder, "run.name": "test-run", "model.path": model} | overrides
        name, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "train", "--config", str(CONFIG)]
            + [f"--{key}={value}" for key, value in settings.items()],
            env=os.environ | {name: value, "TMPDIR": str(self.temporary)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, pattern: str) -> str:
        """Read the output up to the line that matches."""
        assert self.process.stdout is not None
        seen = ""
        for line in self.process.stdout:
            seen += line
            if re.search(pattern, line):
                return line
        pytest.fail(f"{pattern!r} never came:\n{seen}")

    def press_ctrl_c(self) -> None:
        """A terminal sends the signal to every process of the run's group, not to the launcher alone."""
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self) -> str:
        """The rest of the output, once the run has ended."""
        return self.process.communicate(timeout=300)[0]

    def processes(self) -> list[psutil.Process]:
        """Those of the run that are alive."""
        alive = []
        for process in psutil.process_iter():
            try:
                if self._mark in Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0"):
                    alive.append(process)
            except OSError:
                continue
        return alive

    def records(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture
def start(tmp_path, model):
    """Starts a run; afterwards nothing of it may be left: no process, no segment, no socket."""
    runs: list[Run] = []

    def begin(**overrides: object) -> Run:
        runs.append(Run(tmp_path, model, **overrides))
        return runs[-1]

    before = leftovers()
    yield begin
    for run in runs:
        deadline = time.monotonic() + 10
        while run.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        left = [" ".join(p.cmdline())[:100] for p in run.processes()]
        for process in run.processes():
            process.kill()
        assert left == []
        assert list(run.temporary.glob("primezero-*")) == []
        shutil.rmtree(run.temporary)
    assert leftovers() <= before


def leftovers() -> set[str]:
    """Files of the kinds that a run makes outside its folder."""
    return {str(p) for kind in ("primezero-*", "psm_*", "sem.mp-*") for p in Path("/dev/shm").glob(kind)}


def loaded(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_two_rollout_workers_at_learning_rate_zero_change_nothing(start, model):
    run = start(**{"rollout.workers": 2, "learner.lr": 0})
    output = run.finish()
    assert run.process.returncode == 0, output
    steps = run.records("metrics.jsonl")
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5]
    assert all(s["staleness_max"] <= 1 for s in steps)
    assert all(s["episodes"] == 3 * (4 * 9 + 2 * 8) for s in steps)
    # The engines are the learner, synced or not: what they sampled is what it scores.
    assert all(s["learner"]["mismatch_max"] < 1e-3 for s in steps)
    assert all(s["sync"]["probe_difference"] < 1e-4 for s in steps)
    evaluations = run.records("evaluations.jsonl")
    assert [e["version"] for e in evaluations] == [0, 2, 4, 5]
    assert {e["accuracy"] for e in evaluations} == {evaluations[0]["accuracy"]}
    before, after = loaded(model), loaded(run.folder / "model")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_two_learner_ranks_train_and_the_run_is_recorded(start, model):
    run = start(**{"learner.ranks": 2, "selfplay.max_staleness": 0, "run.seed": 3})
    output = run.finish()
    assert run.process.returncode == 0, output
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["steps"] == 5
    assert summary["weight_syncs"] == 6
    assert summary["seed"] == 3
    assert summary["episodes"] == 5 * 3 * (4 * 9 + 2 * 8)
    assert set(summary["per_task"]) == {"deduction", "abduction", "induction"}
    assert {"accuracy_before", "accuracy_after", "accuracy_best", "wall_s", "tokens_generated"} <= set(summary)
    steps = run.records("metrics.jsonl")
    assert all(s["staleness_max"] == 0 for s in steps)
    assert all(0 < s["sync"]["probe_difference"] < 1e-4 for s in steps)
    assert sum(s["response_tokens"] for s in steps) == summary["tokens_generated"]
    assert load_config(run.folder / "config.toml").learner.ranks == 2
    before, after = loaded(model), loaded(run.folder / "model")
    assert any(not before[name].equal(after[name]) for name in before)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = AutoModelForCausalLM.from_pretrained(run.folder / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model", local_files_only=True)
    assert exported.config.vocab_size == len(tokenizer)


def test_interrupted_once_it_finishes_the_step_and_leaves_a_complete_run(start):
    run = start(**{"run.steps": 10_000})
    run.wait_for(r"step +2/")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    assert "stopping after this step" in output
    summary = json.loads((run.folder / "summary.json").read_text())
    assert 2 <= summary["steps"] < 1000
    assert (run.folder / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("moment", [r"starting", r"step +2/"])
def test_interrupted_twice_it_leaves_at_once(start, moment):
    run = start(**{"run.steps": 10_000})
    run.wait_for(moment)
    time.sleep(3)
    run.press_ctrl_c()
    run.wait_for("stopping after this step")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 1, output
    assert "interrupted" in output


def kill_engine(run: Run) -> None:
    (engine,) = [p for p in run.processes() if "EngineCore" in p.name() or "EngineCore" in " ".join(p.cmdline())]
    engine.kill()


def kill_worker(run: Run) -> None:
    (worker,) = [p for p in run.processes() if "RolloutProcess" in " ".join(p.cmdline())]
    worker.kill()


@pytest.mark.parametrize(("kill", "named"), [(kill_engine, "engine"), (kill_worker, "rollout-0")])
def test_a_process_that_dies_ends_the_run_with_an_error_that_names_it(start, kill: Callable[[Run], None], named: str):
    run = start(**{"run.steps": 10_000})
    run.wait_for(r"step +2/")
    kill(run)
    output = run.finish()
    assert run.process.returncode == 1, output
    assert re.search(rf"primezero: .*{named}", output), output
    assert "Traceback" not in output
