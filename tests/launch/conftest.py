"""A tiny model, and runs of it of which nothing may be left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from whole_runs import Run

from shared.config import EnvironmentConfig


@pytest.fixture(scope="session")
def format_model(tmp_path_factory) -> Path:
    from launch.tiny_model import TinyModelSettings, make_tiny_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(folder, EnvironmentConfig(prompts="short"), settings=TinyModelSettings(steps=30), seed=0)
    return folder


@pytest.fixture
def start(tmp_path: Path, format_model: Path) -> Iterator[Callable[..., Run]]:
    """Starts a run; afterwards nothing of it may be left: no process, Ray's helpers included, no segment, no socket."""
    runs: list[Run] = []

    def begin(name: str = "test-run", **overrides: object) -> Run:
        runs.append(Run(tmp_path, format_model, name, **overrides))
        return runs[-1]

    yield begin
    for run in runs:
        unfinished = run.process.poll() is None
        if unfinished:  # its reaper removes the rest
            run.process.kill()
        deadline = time.monotonic() + 60
        while run.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        left = [command[:100] for command in run.commands()]
        for process in run.processes():
            process.kill()
        assert not unfinished
        assert left == []
        assert run.segments.left() == set()
        assert list(run.temporary.glob("primezero-*")) == []
        assert [path for path in run.temporary.rglob("*") if path.is_socket()] == []
        shutil.rmtree(run.temporary)
    if any(run.step() for run in runs):
        assert any(run.segments.seen for run in runs)  # or nothing has been watched
