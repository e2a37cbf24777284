"""A `primezero train` of its own, as a user starts it; all its processes are known by a mark that they inherit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from launch.marked_processes import unnamed

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "launch/configs/cpu_demo.toml"
VARIABLE = "PRIMEZERO_STARTED_RUN"
# What Ray and vLLM name the processes of a run, besides the launcher.
KINDS = {"learner": "LearnerProcess", "rollout": "RolloutWorker", "engine": "EngineCore"}
_TAIL_LINES = 15
_VANISH_S = 20.0
_POLL_S = 0.1


class StartedRun:
    """A configuration, by default the CPU demo's, with `settings`, in the run folder `folder`.

    temporary: where its processes keep temporary files; short, for the sockets in it
    output: takes what it prints; by default a pipe, `process.stdout`
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object],
        *,
        temporary: Path,
        output: int | IO[str] = subprocess.PIPE,
        config: Path | None = None,
    ) -> None:
        self.folder, self.temporary = folder, temporary
        self._mark = uuid.uuid4().hex
        settings = {"run.folder": folder.parent, "run.name": folder.name, **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "train", "--config", str(config or CONFIG)]
            + [f"--{key}={value}" for key, value in settings.items()],
            env=os.environ | {VARIABLE: self._mark, "TMPDIR": str(temporary)},
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    def press_ctrl_c(self) -> None:
        """A terminal sends the signal to every process of the run's group, not to the launcher alone."""
        os.killpg(self.process.pid, signal.SIGINT)

    def processes(self) -> list[psutil.Process]:
        """Those of the run that are alive, in the order of their ids."""
        mark = f"{VARIABLE}={self._mark}".encode()
        alive = unnamed(self.temporary)
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    alive.add(psutil.Process(pid))
        return sorted(alive, key=lambda process: process.pid)

    def find(self, kind: str) -> list[psutil.Process]:
        """The run's processes of a kind, in the order of their ids: as Ray or vLLM has named it."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if kind in process.name() or kind in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def records(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a .jsonl file of the run's folder; [] while there is none."""
        path = self.folder / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def step(self) -> int:
        """The newest step on record; it goes back with the learner."""
        steps = self.records("metrics.jsonl")
        return steps[-1]["step"] if steps else 0

    def summary(self) -> dict[str, Any] | None:
        """summary.json, once the run is complete."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def kill(self) -> None:
        """End whatever is left of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        # The reaper is one of them: it ends the others, and removes what they had in shared memory.
        for process in wait_until_gone(self.processes, _VANISH_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def last_lines(output: Path) -> str:
    """What a run printed last, for an error."""
    return "\n".join(output.read_text(errors="replace", encoding="utf-8").splitlines()[-_TAIL_LINES:])


def wait_until_gone(alive: Callable[[], list[psutil.Process]], timeout_s: float) -> list[psutil.Process]:
    """Until none is alive, or for `timeout_s`; those that still are."""
    deadline = time.monotonic() + timeout_s
    while (left := alive()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return left
