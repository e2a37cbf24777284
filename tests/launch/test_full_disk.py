"""A run whose disk is full in the middle."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

SIZE_MIB = 24


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; tests/shared/test_disk.py has what needs none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb") as file:
        for nbytes in (2**20, 2**12):
            try:
                while True:
                    os.write(file.fileno(), bytes(nbytes))
            except OSError:
                continue


def test_a_full_disk_ends_the_run_with_what_to_do_and_the_same_command_goes_on(start, small_disk):
    command = {"run.steps": 8, "run.checkpoint_every": 2, "run.folder": small_disk}
    first = start(**command)
    first.wait_for(r"^step +3/")
    fill(small_disk / "other")
    output = first.finish()
    assert first.process.returncode == 1
    assert str(small_disk / "test-run") in output
    assert "MiB free in" in output
    assert "goes on from its last checkpoint" in output
    assert "Traceback" not in output

    (small_disk / "other").unlink()
    second = start(**command)
    output = second.finish()
    assert second.process.returncode == 0, output
    assert "resuming from" in output
    steps = [json.loads(line)["step"] for line in (small_disk / "test-run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
