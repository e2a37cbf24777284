"""Whole runs through the real engine, stream, learner and Ray, as a user starts them."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from used_segments import UsedSegments

from launch.bench.started_run import CONFIG, StartedRun
from launch.marked_processes import VARIABLE
from learner.audit import audit

SMALL = {
    "run.steps": 5,
    "run.evaluate_every": 2,
    "run.final_evaluations": 1,
    "selfplay.proposals_per_task": 4,
    "selfplay.buffer_problems_per_task": 2,
}


class Run(StartedRun):
    """A small `primezero train` of its own, whose output is read line by line."""

    def __init__(
        self, folder: Path, model: Path, name: str = "test-run", config: Path = CONFIG, **overrides: object
    ) -> None:
        self.model = model
        # Short, for the sockets in it.
        temporary = Path(tempfile.mkdtemp(prefix="pz", dir="/tmp"))
        super().__init__(folder / name, SMALL | {"model.path": model} | overrides, temporary=temporary, config=config)
        self.segments = UsedSegments(self.processes)

    def wait_for(self, pattern: str) -> str:
        """Read the output up to the line that matches."""
        assert self.process.stdout is not None
        seen = ""
        for line in self.process.stdout:
            seen += line
            if re.search(pattern, line):
                return line
        pytest.fail(f"{pattern!r} never came:\n{seen}")

    def wait_for_processes(self, *kinds: str) -> None:
        """Until there is one of each kind: as Ray or vLLM has named it."""
        while not all(self.find(kind) for kind in kinds):
            assert self.process.poll() is None, self.finish()
            time.sleep(0.2)

    def finish(self) -> str:
        """The rest of the output, once the run has ended."""
        return self.process.communicate(timeout=900)[0]

    def commands(self) -> list[str]:
        """Name and command line of each of the run's processes, but of those that end meanwhile."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join([process.name(), *process.cmdline()]))
        return found

    def process_named(self, kind: str, owner: str = "") -> psutil.Process:
        """The first of the run's processes of a kind: as Ray or vLLM has named it. owner: or that of this name."""
        return next(each for each in self.find(kind) if each.environ().get(VARIABLE, "").endswith(owner))


def check_records(run: Run) -> None:
    """Every step and every ticket once, whatever was killed; after every sync the engine had the learner's weights."""
    assert audit(run.folder).sound
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


def loaded(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
