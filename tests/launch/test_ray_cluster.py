"""Ray's side of supervision: how processes end, and that nothing of one stays when another is to take its place."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launch import marked_processes, ray_cluster, ray_instance
from launch.marked_processes import lives
from launch.placement import rollout_names
from launch.ray_cluster import BEATS_INTERVAL_S
from launch.supervisor import Ended, ProcessDied
from rollout.worker import WorkerSpec
from shared.config_file import load_config
from shared.errors import EngineError

pytestmark = pytest.mark.integration

CONFIG = load_config(None, ["--rollout.workers=5", "--placement.device=cpu"])
RETURNS, RAISES, KILLED, OTHER, STOPPED = rollout_names(CONFIG)


def stand_in() -> type:
    class StandIn:
        """The first returns, the second raises; the others have a child that holds a segment and outlives them.

        Local, so that Ray takes it along.
        """

        def __init__(self):
            self.beaten = 0

        def beats(self):
            self.beaten += 1
            return self.beaten

        def run(self, config, spec, around):
            import time
            from pathlib import Path

            from shared.errors import EngineError

            if spec.name == "rollout-1":
                raise EngineError("no engine")
            if spec.name == "rollout-0":
                return
            around.make_sockets()
            log_file = around.log_file
            held = Path(f"/dev/shm/primezero-test-{spec.name}-{os.getpid()}")
            command = f"exec 3>{held}; echo $$ > {log_file}.new; mv {log_file}.new {log_file}; exec sleep 100"
            subprocess.Popen(["bash", "-c", command], start_new_session=True)
            while True:
                time.sleep(1)

    return StandIn


@pytest.fixture(scope="module")
def cluster() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="pz", dir="/tmp") as folder:
        patch.setattr(ray_cluster, "RolloutProcess", stand_in())
        (Path(folder) / "logs").mkdir()
        # The folder in which the command is given has packages of the same names.
        for name in ("launch", "learner", "rollout", "shared"):
            (Path(folder) / "here" / name).mkdir(parents=True)
            (Path(folder) / "here" / name / "__init__.py").write_text("raise RuntimeError('another package')")
        patch.chdir(Path(folder) / "here")
        others = set(psutil.Process().children(recursive=True))
        with ray_cluster.Cluster(CONFIG, Path(folder), Path(folder)) as started:
            yield SimpleNamespace(processes=started, logs=Path(folder) / "logs", folder=Path(folder), others=others)


def start(cluster: SimpleNamespace, name: str) -> tuple[psutil.Process, psutil.Process, Path]:
    """A process that stays: itself, its child, what the child holds."""
    cluster.processes.start_rollout(CONFIG, WorkerSpec(name=name, endpoint=""))
    log = cluster.logs / f"{name}.log"
    while not log.exists():
        assert cluster.processes.poll(0.1) == []
    child = psutil.Process(int(log.read_text()))
    log.unlink()
    parent = child.parent()
    assert parent is not None
    held = Path(f"/dev/shm/primezero-test-{name}-{parent.pid}")
    assert held.exists()
    return parent, child, held


def wait_for_end(cluster: SimpleNamespace) -> Ended:
    while not (ended := cluster.processes.poll(0.5)):
        pass
    return ended[0]


def test_ray_s_own_processes_are_known_too_and_nobody_else_can_enter_the_folder(cluster):
    mark = f"{cluster.folder}/ray"
    children = set(psutil.Process().children(recursive=True)) - cluster.others
    known = marked_processes.marked(mark)[mark] | marked_processes.unnamed(cluster.folder)
    children = {child for child in children if lives(child)}  # some that Ray asks about the machine end by themselves
    assert {"raylet", "gcs_server"} <= {child.name() for child in children}
    assert children <= known
    assert cluster.folder.stat().st_mode & 0o077 == 0


def test_of_one_that_never_came_to_life_is_said_why(cluster, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("class RolloutProcess:\n    def run(self, *_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ray_cluster, "RolloutProcess", importlib.import_module("only_here").RolloutProcess)
    cluster.processes.start_rollout(CONFIG, WorkerSpec(name=OTHER, endpoint=""))
    ended = wait_for_end(cluster)
    assert isinstance(ended.error, ProcessDied)
    expected = f"the process of {OTHER} died (ModuleNotFoundError: No module named 'only_here')"
    assert ended.error.reason(OTHER) == expected
    cluster.processes.end([OTHER])


def test_where_the_kernel_has_ended_processes_for_want_of_memory_that_is_said(cluster, monkeypatch):
    process, _, _ = start(cluster, OTHER)
    monkeypatch.setattr(ray_cluster, "killed_for_memory", lambda: 10**9)
    process.kill()
    ended = wait_for_end(cluster)
    assert isinstance(ended.error, ProcessDied)
    assert "for want of memory" in ended.error.reason(OTHER)
    cluster.processes.end([OTHER])


def test_one_that_returns_or_raises_says_what(cluster):
    for name in (RETURNS, RAISES):
        cluster.processes.start_rollout(CONFIG, WorkerSpec(name=name, endpoint=""))
    ended = {}
    while len(ended) < 2:
        ended |= {e.name: e for e in cluster.processes.poll(0.5)}
    assert ended[RETURNS] == Ended(RETURNS)
    assert isinstance(ended[RAISES].error, EngineError)
    assert str(ended[RAISES].error) == "no engine"
    assert cluster.processes.running() == set()


def test_ray_listens_on_loopback_alone_and_asks_for_a_token(cluster):
    ports = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            ports |= {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert ports
    assert {address.ip.removeprefix("::ffff:") for address in ports} == {"127.0.0.1"}
    token = cluster.folder / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    asked = ray_cluster.ray.get_runtime_context().gcs_address
    assert ray_instance._lets_in(asked, token.read_text())
    assert not ray_instance._lets_in(asked, "0" * 64)


def test_of_one_that_was_killed_nothing_is_left_when_it_is_started_again(cluster, capfd):
    parent, child, held = start(cluster, KILLED)
    _, other_child, other_held = start(cluster, OTHER)
    cluster.processes._note()  # what a poll does every other second
    assert cluster.processes.resident_bytes()[KILLED] > child.memory_info().rss
    socket = cluster.folder / KILLED / "a-socket-file"
    socket.touch()
    parent.kill()
    ended = wait_for_end(cluster)
    assert ended.name == KILLED
    assert isinstance(ended.error, ProcessDied)
    assert lives(child)
    cluster.processes.end([KILLED])
    assert not lives(child)
    assert not held.exists()
    assert lives(other_child)
    assert other_held.exists()
    again, second_child, _ = start(cluster, KILLED)
    assert again.pid != parent.pid
    assert not socket.exists()
    cluster.processes.end([KILLED, OTHER])
    assert not lives(second_child)
    assert not lives(other_child)
    assert not other_held.exists()
    assert "raylet" not in "".join(capfd.readouterr())


def beats_once_asked_again(cluster: SimpleNamespace) -> int:
    for _ in range(2):
        time.sleep(BEATS_INTERVAL_S + 0.5)
        cluster.processes.beats()
    return cluster.processes.beats()[STOPPED]


def wait_for_more_beats(cluster: SimpleNamespace, before: int) -> int:
    """Or until the test's own time limit."""
    while (beats := cluster.processes.beats()[STOPPED]) <= before:
        time.sleep(0.1)
    return beats


def test_one_that_is_stopped_holds_up_nobody_shows_no_life_and_can_be_ended(cluster):
    parent, child, held = start(cluster, STOPPED)
    first = wait_for_more_beats(cluster, 0)
    parent.send_signal(signal.SIGSTOP)
    child.send_signal(signal.SIGSTOP)
    for _ in range(4):
        assert cluster.processes.poll(0.5) == []
    assert STOPPED in cluster.processes.running()
    stopped = beats_once_asked_again(cluster)
    parent.send_signal(signal.SIGCONT)
    assert stopped >= first
    wait_for_more_beats(cluster, stopped)
    time.sleep(0.2)
    parent.send_signal(signal.SIGSTOP)
    cluster.processes.end([STOPPED])
    assert not lives(parent)
    assert not lives(child)
    assert not held.exists()
