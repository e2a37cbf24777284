"""Whole runs through the real engine, stream, learner and Ray, as a user starts them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import psutil
import pytest

from launch.marked_processes import unnamed
from launch.segments import existing, used_by

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "launch/configs/cpu_demo.toml"
SMALL = {
    "run.steps": 5,
    "run.evaluate_every": 2,
    "run.final_evaluations": 1,
    "selfplay.proposals_per_task": 4,
    "selfplay.buffer_problems_per_task": 2,
}


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
        """Those of the run that are alive; Ray's agents, whose environment is wiped, by the files they keep open."""
        alive = list(unnamed(self.temporary))
        for process in psutil.process_iter():
            try:
                if self._mark in Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0"):
                    alive.append(process)
            except OSError:
                continue
        return alive

    def process_named(self, kind: str, which: int = 0) -> psutil.Process:
        """One of the run's processes of a kind, in the order of their ids: as Ray or vLLM has named it."""
        found = [p for p in self.processes() if kind in p.name() or kind in " ".join(p.cmdline())]
        return sorted(found, key=lambda process: process.pid)[which]

    def records(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


def check_records(run: Run) -> None:
    """Every step exactly once, whatever was killed; the engine had the learner's weights after every sync."""
    steps = run.records("metrics.jsonl")
    summary = json.loads((run.folder / "summary.json").read_text())
    assert [s["step"] for s in steps] == list(range(1, summary["steps"] + 1))
    walls = [s["wall_s"] for s in steps]
    assert walls == sorted(walls)
    assert summary["episodes"] == sum(s["episodes"] + s["untrained_episodes"] for s in steps)
    assert all(s["sync"]["probe_difference"] < 1e-4 for s in steps)
    assert all(s["learner"]["mismatch_max"] < 1e-3 for s in steps if s["staleness_max"] == 0)
    evaluations = [e["version"] for e in run.records("evaluations.jsonl")]
    assert evaluations == sorted(set(evaluations))
    assert evaluations[-1] == summary["steps"]


def leftovers() -> set[Path]:
    """Shared memory of the kinds that a run makes, which nobody has open: what another run uses is none."""
    unused = existing() - used_by(psutil.process_iter())
    return {path for path in unused if path.exists()}  # some were in use, and went meanwhile


def loaded(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
