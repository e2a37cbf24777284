import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.experiments import processes
from launch.model_recipe import ROOT


def test_a_child_is_logged_and_its_exit_code_handed_on(tmp_path):
    code = processes.run_logged([sys.executable, "-c", "print('hello'); raise SystemExit(3)"], tmp_path / "a/child.log")
    assert code == 3
    assert (tmp_path / "a/child.log").read_text() == "hello\n"


RUNNER = """
import sys
from pathlib import Path
from launch.experiments.processes import run_logged, unwound_by_sigterm

with unwound_by_sigterm():
    run_logged([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"], Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 128 + 15), (signal.SIGINT, -2)])
def test_a_child_ends_with_its_runner_however_that_ends(tmp_path, stop, code):
    log = tmp_path / "log"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(log)], cwd=ROOT, stderr=subprocess.DEVNULL)
    (child,) = wait_for(lambda: log.exists() and log.read_text() and children(runner.pid))
    runner.send_signal(stop)
    assert runner.wait(60) == code
    wait_for(lambda: state(child) in ("", "Z"))


def wait_for(condition, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
    return value


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return ""


def test_the_code_version_tells_changed_code_and_not_changed_documents(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    assert processes.code_version(tmp_path) == "unknown: not a git checkout"
    git("init", "-q")
    for name in ("launch/train.py", "docs/learning.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("before")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").stdout.strip()
    (tmp_path / "docs/learning.md").write_text("after")
    assert processes.code_version(tmp_path) == commit
    (tmp_path / "launch/more.py").write_text("")
    assert processes.code_version(tmp_path) == f"{commit}+changes"
