"""Disks that take no more. /dev/full is one; a limit on a file's size stops a write half way."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared import disk
from shared.errors import DiskError
from shared.metrics import MetricsLog, cut_records

WHAT_TO_DO = (
    r"cannot write .*: No space left on device; .* free in .*\. Make room there.*goes on from its last checkpoint"
)
ROOT = Path(__file__).parents[2]


def ended_with(code: str, path: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=False
    ).stderr


def test_a_record_that_a_full_disk_refuses_says_so_and_closing_does_not_fail_again(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for _ in range(2):
        with pytest.raises(DiskError, match=WHAT_TO_DO) as caught:
            log.write({"step": 1})
    assert str(tmp_path / "metrics.jsonl") in str(caught.value)
    log.close()


def test_a_record_torn_half_way_is_cut_off_and_the_log_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    code = """
import resource, sys
from pathlib import Path
from shared.errors import DiskError
from shared.metrics import MetricsLog
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = MetricsLog(Path(sys.argv[1]))
try:
    for step in range(1000):
        log.write({"step": step, "what": "x" * 50})
except DiskError as error:
    log.close()
    sys.exit(str(error))
"""
    ended = ended_with(code, path)
    assert "File too large" in ended
    assert "goes on from its last checkpoint" in ended
    assert path.stat().st_size == 1000
    steps = [record["step"] for record in cut_records(path, lambda _: True)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 5
    log = MetricsLog(path)
    log.write({"step": len(steps)})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(len(steps) + 1))


def test_what_other_libraries_say_of_a_full_disk_is_understood(tmp_path):
    code = """
import resource, sys
from pathlib import Path
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from shared.disk import writing
from shared.errors import DiskError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with writing(Path(sys.argv[1]), SafetensorError):
        save_file({"a": torch.zeros(2**16)}, Path(sys.argv[1]) / "model.safetensors")
except DiskError as error:
    sys.exit(str(error))
"""
    ended = ended_with(code, tmp_path)
    assert f"cannot write {tmp_path}: " in ended
    assert "Make room there" in ended


@pytest.mark.parametrize(("free", "said"), [(0, "0.0 MiB free in .*Make room"), (2**30, "see to it that it can be")])
def test_a_library_that_does_not_say_why_is_judged_by_the_room_left(tmp_path, monkeypatch, free, said):
    monkeypatch.setattr(disk, "free_bytes", lambda path: free)
    with pytest.raises(DiskError, match=said), disk.writing(tmp_path / "policy", RuntimeError):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def test_a_disk_that_has_become_read_only_is_told_from_a_full_one(tmp_path):
    with (
        pytest.raises(DiskError, match="Read-only file system; see to it that it can be written"),
        disk.writing(tmp_path),
    ):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_logging_to_a_full_disk_ends_nothing():
    code = """
import logging, sys
from pathlib import Path
from launch.processes import log_to_file
log_to_file(Path("/dev/full"))
for _ in range(1000):
    logging.getLogger("x").warning("y" * 100)
sys.stdout = sys.stderr = None  # what is left in their buffers fails once more at the end
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
