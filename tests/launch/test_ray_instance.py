"""Which Ray clusters are joined."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launch import ray_instance
from launch.marked_processes import end, of_start
from launch.processes import free_port
from shared.errors import PlacementError


def test_ray_neither_kills_for_memory_nor_runs_a_copy_of_the_current_folder():
    from ray._private.ray_constants import RAY_ENABLE_UV_RUN_RUNTIME_ENV

    assert ("RAY_memory_monitor_refresh_ms", "0") in os.environ.items()
    assert not RAY_ENABLE_UV_RUN_RUNTIME_ENV
    assert "RAY_RUNTIME_ENV_HOOK" not in os.environ


def test_where_nobody_listens_it_says_how_a_cluster_is_started():
    with pytest.raises(PlacementError, match=r"Nobody listens there: .*refused") as refused:
        ray_instance.join(f"127.0.0.1:{free_port()}")
    assert "launch/cluster.sh head" in str(refused.value)


def test_a_cluster_that_lets_anybody_in_is_not_joined(monkeypatch):
    asked = []
    monkeypatch.setattr(ray_instance, "_lets_in", lambda address, token: asked.append((address, token)) or True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(PlacementError, match="lets in who has not its token"):
            ray_instance.join(address)
    [(there, token)] = asked
    assert there == address
    assert len(token) == 64


ENDED = """
import os, signal, sys, time
from pathlib import Path
from launch import ray_instance

def unwind(number, frame):
    print("unwinding", flush=True)
    sys.exit(7)

signal.signal(signal.SIGTERM, unwind)
ray_instance.start_own(Path(sys.argv[1]), mark=f"{sys.argv[1]}/ray", cpus=1, gpus=0)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(600)
"""


@pytest.mark.integration
def test_who_ends_a_run_is_heard_by_its_own_handlers_and_not_by_rays():
    with tempfile.TemporaryDirectory(prefix="pz") as folder:
        ended = subprocess.run([sys.executable, "-c", ENDED, folder], capture_output=True, text=True, timeout=250)
        # Its helpers would stay for a while, and have files in the folder until then.
        assert end(of_start(Path(folder)), leave_s=0, killed_s=60) == []
        assert ended.returncode == 7, ended.stderr
        assert ended.stdout == "unwinding\n"
        assert "SIGTERM received" not in ended.stderr


def test_a_token_that_is_not_the_cluster_s_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(ray_instance, "_lets_in", lambda address, token: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(PlacementError, match=r"same ~/\.ray/auth_token\. This user's token is missing here"):
            ray_instance.join(address)
