"""Nothing outlives a start: a small launcher with small processes, killed, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from waiting import until

from launch.leftovers import Leftovers
from launch.marked_processes import VARIABLE, lives
from launch.private_folder import RECORD_FILE, private_folder, remove_leftovers

ROOT = Path(__file__).parents[2]
# Nothing but the reaper would remove any of it: a busy machine has its time.
CLEAN_S = 60.0
# Its processes hold a segment and a socket; one of them, an orphan in a session of its own, no signal but SIGKILL ends.
LAUNCHER = """
import os, subprocess, sys, time
from pathlib import Path
from launch.private_folder import private_folder

segment, how = sys.argv[2:]
with private_folder(Path(sys.argv[1])) as private:
    mark = os.environ | {"PRIMEZERO_PROCESS": f"{private.path}/sleeper"}
    if how == "dead owner":
        Path(segment).touch()
        private.note({Path(segment)})
    holds = f"exec 3>{segment}; " if how != "dead owner" else ""
    command = f"trap '' INT TERM HUP; {holds}sleep 1000 & sleep 1000"
    subprocess.Popen(["bash", "-c", command], env=mark, start_new_session=True)
    subprocess.Popen([sys.executable, "-c", "import socket, sys, time; s = socket.socket(socket.AF_UNIX); "
        "s.bind(sys.argv[1]); time.sleep(1000)", f"{private.path}/socket"], env=mark)
    while not Path(f"{private.path}/socket").exists() or not Path(segment).exists():
        time.sleep(0.05)
    print(private.path, flush=True)
    if how == "raises":
        raise ValueError
    if how != "returns":
        time.sleep(1000)
"""


def alive(mark: str) -> list[psutil.Process]:
    """Living processes with this in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0") and lives(process):
                found.append(process)
    return found


def ignored_signals(process: psutil.Process) -> set[int]:
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = int(status.partition("SigIgn:")[2].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@dataclass
class Start:
    """A launcher that is up."""

    process: subprocess.Popen[str]
    run_folder: Path
    private: Path
    segment: Path
    mark: str

    def processes(self) -> list[psutil.Process]:
        return alive(self.mark)

    def reaper(self) -> psutil.Process:
        (reaper,) = [p for p in self.processes() if "launch.reaper" in p.cmdline()]
        return reaper

    def left(self) -> list[object]:
        return [*self.processes(), *(path for path in (self.private, self.segment) if path.exists())]

    def wait_until_clean(self) -> None:
        deadline = time.monotonic() + CLEAN_S
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Start]]:
    starts: list[Start] = []
    run_folder = tmp_path / "run"
    (run_folder / "logs").mkdir(parents=True)

    def start(how: str = "stays") -> Start:
        number = len(starts)
        segment = Path(f"/dev/shm/psm_test{os.getpid()}_{number}")
        mark = f"PRIMEZERO_TEST={tmp_path}/{number}"
        name, _, value = mark.partition("=")
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(run_folder), str(segment), how],
            env=os.environ | {name: value, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        starts.append(Start(process, run_folder, Path(process.stdout.readline().strip()), segment, mark))
        return starts[-1]

    yield start
    for each in starts:
        for process in each.processes():
            process.kill()
        each.process.wait(60)
        each.segment.unlink(missing_ok=True)


def test_of_a_launcher_that_is_killed_nothing_is_left_after_seconds(begin):
    start = begin()
    until(lambda: len(start.processes()) == 6)  # the launcher, its reaper, a shell and three that sleep
    assert start.segment.exists()
    os.killpg(start.process.pid, signal.SIGKILL)  # the reaper is not in its group
    start.wait_until_clean()
    assert str(start.private) in (start.run_folder / "logs/reaper.log").read_text()


def test_what_a_process_used_that_died_before_the_launcher_is_removed_too(begin):
    start = begin("dead owner")
    start.process.kill()
    start.wait_until_clean()


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_of_a_launcher_that_ends_by_itself_nothing_is_left_at_all(begin, how):
    start = begin(how)
    assert (start.process.wait(60) == 0) == (how == "returns")
    assert start.left() == []
    assert not (start.run_folder / RECORD_FILE).exists()
    assert (start.run_folder / "logs/reaper.log").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_reaper_do_not_keep_it_from_its_work(begin, number):
    start = begin()
    reaper = start.reaper()
    assert os.getpgid(reaper.pid) == os.getsid(reaper.pid) == reaper.pid
    until(lambda: number in ignored_signals(reaper))  # from a moment after its start on
    reaper.send_signal(number)
    start.process.kill()
    start.wait_until_clean()


def test_when_the_reaper_is_killed_too_the_next_start_removes_everything(begin):
    start = begin()
    reaper = start.reaper()
    reaper.kill()
    start.process.kill()
    start.process.wait(60)
    until(lambda: not lives(reaper) and len(start.left()) == 6)
    time.sleep(0.5)
    assert len(start.left()) == 6
    remove_leftovers(start.run_folder)
    assert start.left() == []
    assert not (start.run_folder / RECORD_FILE).exists()


def test_a_reaper_that_was_killed_is_replaced(tmp_path):
    def reapers() -> list[psutil.Process]:
        children = [child for child in psutil.Process().children() if lives(child)]
        return [child for child in children if "launch.reaper" in child.cmdline()]

    (tmp_path / "logs").mkdir()
    with private_folder(tmp_path) as private:
        (first,) = reapers()
        first.kill()
        while lives(first):
            time.sleep(0.01)
        private.note(set())
        (second,) = reapers()
    assert not lives(second)


def test_nothing_of_another_run_is_touched(begin):
    start, other = begin(), begin()
    assert start.private != other.private
    until(lambda: len(other.left()) == 8)
    start.process.kill()
    start.wait_until_clean()
    assert len(other.left()) == 8


def on_record(folder: Path, left: Leftovers) -> None:
    (folder / RECORD_FILE).write_text(json.dumps({"boot": left.boot, "folder": left.folder, "segments": left.segments}))


def test_a_segment_is_left_alone_whose_name_was_taken_again_or_that_somebody_uses(tmp_path):
    taken, used, ours = (Path(f"/dev/shm/psm_test{os.getpid()}{kind}") for kind in ("taken", "used", "ours"))
    foreign = Path(f"/dev/shm/other{os.getpid()}")
    try:
        for path in (taken, used, ours, foreign):
            path.touch()
        left = Leftovers.of(tmp_path / "primezero-gone", [taken, used, ours, foreign])
        assert len(left.segments) == 4
        kept = taken.with_name(f"psm_test{os.getpid()}kept")
        taken.rename(kept)  # or its inode might be given out again
        taken.touch()
        on_record(tmp_path, left)
        with used.open():
            remove_leftovers(tmp_path)
        kept.unlink()
        assert [path.exists() for path in (taken, used, ours, foreign)] == [True, True, False, True]
    finally:
        for path in (taken, used, ours, foreign):
            path.unlink(missing_ok=True)


def test_a_record_of_another_boot_names_no_process_and_no_segment_only_a_folder(tmp_path):
    folder, segment = tmp_path / "primezero-old", Path(f"/dev/shm/psm_test{os.getpid()}old")
    folder.mkdir(mode=0o700)
    sleeper = subprocess.Popen(["sleep", "100"], env=os.environ | {VARIABLE: f"{folder}/rollout-0"})
    try:
        segment.touch()
        left = Leftovers.of(folder, [segment])
        on_record(tmp_path, Leftovers("another", left.folder, left.segments))
        remove_leftovers(tmp_path)
        assert not folder.exists()
        assert segment.exists()
        assert sleeper.poll() is None
    finally:
        segment.unlink()
        sleeper.kill()
        sleeper.wait(60)


# As a title is written over the environment: zeros from its start on (field 50 of /proc/self/stat), but not to its end.
OVERWRITE_ENVIRONMENT = """
import ctypes, sys, time
start = int(open("/proc/self/stat").read().rpartition(")")[2].split()[47])
file = open(sys.argv[1], "a")
ctypes.memset(start, 0, 100)
print("up", flush=True)
time.sleep(100)
"""


def test_who_has_overwritten_its_environment_is_known_by_the_files_it_keeps_open_and_a_reader_is_spared(tmp_path):
    folder = tmp_path / "primezero-here"
    folder.mkdir(mode=0o700)
    keep = f"exec 3>>{folder}/log; echo up; exec"
    wiped = subprocess.Popen(["bash", "-c", f"{keep} env -i sleep 100"], stdout=subprocess.PIPE)
    titled = subprocess.Popen(
        [sys.executable, "-c", OVERWRITE_ENVIRONMENT, folder / "log"],
        stdout=subprocess.PIPE,
        env={"FIRST": "x" * 200, "LAST": "x" * 200},
    )
    reader = subprocess.Popen(["bash", "-c", f"{keep} sleep 100"], stdout=subprocess.PIPE)
    elsewhere = subprocess.Popen(["sleep", "100"], env={})
    try:
        for process in (wiped, titled, reader):
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        while psutil.Process(wiped.pid).environ():
            time.sleep(0.02)
        assert Path(f"/proc/{titled.pid}/environ").read_bytes().rstrip(b"\0").endswith(b"x" * 200)
        Leftovers.of(folder).write(tmp_path / RECORD_FILE)
        remove_leftovers(tmp_path)
        assert wiped.wait(60) == titled.wait(60) == -signal.SIGKILL
        assert (reader.poll(), elsewhere.poll()) == (None, None)
    finally:
        for process in (wiped, titled, reader, elsewhere):
            process.kill()
            process.wait(60)


@pytest.mark.parametrize("named", ["somewhere", "primezero-link"])
def test_a_folder_is_left_alone_that_no_start_would_have_made(tmp_path, named):
    folder = tmp_path / named
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if named == "primezero-link":
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir(mode=0o700)
    (folder / "file").touch()
    on_record(tmp_path, Leftovers.of(folder))
    remove_leftovers(tmp_path)
    assert (folder / "file").exists()
    assert not (tmp_path / RECORD_FILE).exists()


@pytest.mark.parametrize("content", ["", "{}", '{"boot": 1, "folder": [], "segments": {}}', "\0"])
def test_a_record_that_cannot_be_read_is_no_obstacle(tmp_path, content):
    (tmp_path / RECORD_FILE).write_text(content)
    remove_leftovers(tmp_path)
    assert not (tmp_path / RECORD_FILE).exists()
