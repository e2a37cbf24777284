"""Processes forked from the fork server, which here imports something light."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from waiting import until

from launch.marked_processes import lives

PROGRAM = Path(__file__).parent / "forking.py"


@dataclass
class Forked:
    """Where a process is: its own id, its parent's, and what it found there."""

    id: int
    parent: int
    told: str
    preloaded: bool


@contextlib.contextmanager
def forking(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Forked]]]:
    """The program and, by name, its processes. folder: in which the command is given"""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), *words], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        found = {}
        while len(found) < 3:
            name, id, parent, *told, preloaded = program.stdout.readline().split()
            found[name] = Forked(int(id), int(parent), " ".join(told), preloaded == "True")
        try:
            yield program, found
        finally:
            program.kill()


def gone(*ids: int) -> None:
    """Wait until none of these processes is there any more."""

    def is_left(id: int) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return lives(psutil.Process(id))
        return False

    until(lambda: not any(map(is_left, ids)))


def test_forked_processes_share_a_server_and_have_their_starters_environment(tmp_path):
    (tmp_path / "json").mkdir()
    (tmp_path / "json/__init__.py").write_text("raise RuntimeError('a folder of the same name')\n")
    with forking(tmp_path) as (program, found):
        server = psutil.Process(found["first"].parent)
        assert server.ppid() == program.pid
        assert found["second"].parent == server.pid
        assert (found["first"].told, found["second"].told) == ("by the main process", "by the first")
        assert [found[name].preloaded for name in ("main", "first", "second")] == [False, True, True]


@pytest.mark.parametrize("killed", ["main", "first", "server"])
def test_nothing_that_was_forked_outlives_who_started_it(tmp_path, killed):
    with forking(tmp_path) as (_, found):
        server = found["first"].parent
        ids = {"main": found["main"].id, "first": found["first"].id, "server": server}
        psutil.Process(ids[killed]).kill()
        gone(found["first"].id, found["second"].id)
        if killed == "main":
            gone(server)


def test_where_the_server_has_another_environment_than_a_process_would_read_once_it_is_spawned(tmp_path):
    with forking(tmp_path, "other environment") as (program, found):
        assert found["first"].parent == program.pid
        assert not found["first"].preloaded
        assert found["first"].told == "by the main process"
        psutil.Process(program.pid).kill()
        gone(found["first"].id, found["second"].id)
