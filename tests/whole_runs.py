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


def leftovers() -> set[str]:
    """Files of the kinds that a run makes outside its folder."""
    return {str(p) for kind in ("primezero-*", "psm_*", "sem.mp-*") for p in Path("/dev/shm").glob(kind)}


def loaded(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
