"""Ray itself: an instance of the run's own on this machine, or a cluster that this machine has been joined to."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch import marked_processes
from launch.placement import Machine
from shared.errors import PlacementError

# Read by Ray while it is imported or started. Its workers are niced by default, which would starve them
# beside anything else on the machine.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# No worker is of use before it is asked for.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# It would kill processes of the run at 95% of the machine's memory, all of which the memory plan gives away.
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
# Otherwise the raylet has a page of guesses printed here for every process that dies.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
# Whoever may speak to Ray can have code run here.
os.environ["RAY_AUTH_MODE"] = "token"
# Set, as some clusters have it, it would leave every process on the first GPU.
os.environ.pop("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", None)
# Under `uv run`, or with a hook of others', Ray would pack the current folder and run a copy of it.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ.pop("RAY_RUNTIME_ENV_HOOK", None)
import psutil
import ray
import ray._private.node
import ray._private.services
import ray._private.state
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.job_config import JobConfig
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

# The launcher's other modules have Ray from here, with its environment as it has to be.
__all__ = [
    "NO_GPU_CHOICE",
    "GetTimeoutError",
    "NodeAffinitySchedulingStrategy",
    "PlacementGroupSchedulingStrategy",
    "RayError",
    "RayTaskError",
    "RuntimeEnvSetupError",
    "forget",
    "join",
    "machines",
    "placement_group",
    "ray",
    "start_own",
]

NO_GPU_CHOICE = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
START_S = 120.0
ASK_S = 60.0
CONNECT_S = 10.0
OBJECT_STORE_BYTES = 100 * 2**20
TOKEN = secrets.token_hex(32)

_own_token = ""


def start_own(folder: Path, *, mark: str, cpus: int, gpus: int) -> None:
    """An instance that listens on loopback alone, and keeps its files in a private folder.

    mark: of Ray's own processes; gpus: the first so many that are visible here
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN, encoding="utf-8")
    global _own_token
    os.environ["RAY_AUTH_TOKEN_PATH"] = _own_token = str(token)
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would count for more
    # Ray's own processes have it from here; those of the run are given another.
    os.environ[marked_processes.VARIABLE] = mark
    # Its own limits do not cover a process of its that stops in the middle. Killed, it is noticed.
    late = threading.Timer(START_S, _kill, [mark])
    late.daemon = True
    late.start()
    try:
        with _loopback(), _without_helpers(), _own_handlers():
            _init(folder, cpus, gpus)
    finally:
        late.cancel()


def join(address: str) -> None:
    """Become a client of a running cluster. PlacementError where that cannot be, or where it lets anybody in."""
    host, _, port = address.rpartition(":")
    refused = (
        f"no Ray cluster takes this machine in at placement.ray_address={address}: it is started with `bash "
        f"launch/cluster.sh head`, every other machine is joined with `bash launch/cluster.sh join {host}:{port}`, and "
        "all of them have the same ~/.ray/auth_token"
    )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise PlacementError(f"{refused}. Nobody listens there: {error.strerror or error}") from error
    if _lets_in(address, secrets.token_hex(32)):
        raise PlacementError(
            f"the Ray cluster at {address} lets in who has not its token, and with that to every machine of it: start "
            "it with RAY_AUTH_MODE=token, as `bash launch/cluster.sh head` does"
        )
    if not _lets_in(address, None):  # Ray itself would go on trying, aloud
        raise PlacementError(f"{refused}. This user's token is missing here, or is not the cluster's")
    try:
        with _own_handlers():
            ray.init(address=address, job_config=_job(), log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise PlacementError(f"{refused}. Ray says: {error}") from error


def forget() -> None:
    """After Ray has been shut down: this process is part of it no more."""
    os.environ.pop(marked_processes.VARIABLE, None)
    if os.environ.get("RAY_AUTH_TOKEN_PATH") == _own_token:  # of a file that goes with the start
        del os.environ["RAY_AUTH_TOKEN_PATH"]


def machines() -> tuple[Machine, list[Machine]]:
    """This one, and the others, with what is free of each."""
    here = ray.get_runtime_context().get_node_id()
    free = ray._private.state.available_resources_per_node()
    found = {node["NodeID"]: _machine(node, free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]}
    return found.pop(here), sorted(found.values(), key=lambda machine: (-machine.gpus, machine.address))


def _machine(node: dict[str, Any], free: dict[str, float]) -> Machine:
    return Machine(node["NodeID"], node["NodeManagerAddress"], free.get("CPU", 0.0), int(free.get("GPU", 0)))


def _init(folder: Path, cpus: int, gpus: int) -> None:
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=cpus,
        num_gpus=gpus,
        object_store_memory=OBJECT_STORE_BYTES,
        job_config=_job(),
        log_to_driver=False,
        logging_level=logging.ERROR,
        # A folder of its own: Ray lets everybody write there, and workers' sockets are beside it.
        _temp_dir=str(folder / "ray"),
        _node_ip_address="127.0.0.1",
    )


def _kill(mark: str) -> None:
    for process in marked_processes.marked(mark).get(mark, ()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class _NoFolders(list[str]):
    """Stays empty."""

    def extend(self, _: object) -> None:
        pass


def _job() -> JobConfig:
    """Ray would have every worker import from the folder in which the command is given first, whatever lies there."""
    job = JobConfig()
    job._py_driver_sys_path = _NoFolders()
    return job


@contextlib.contextmanager
def _without_helpers() -> Iterator[None]:
    """Ray starts an autoscaler, a web server and a reader of logs too, and waits for them: seconds, and nobody asks."""
    node = ray._private.node.Node
    helpers = {name: getattr(node, name) for name in ("start_monitor", "start_api_server", "start_log_monitor")}
    for name in helpers:
        setattr(node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in helpers.items():
            setattr(node, name, start)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Ray takes 127.0.0.1 for this machine's outer address, at which all that it starts would then listen."""
    resolve = ray._private.services.resolve_ip_for_localhost
    ray._private.services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        ray._private.services.resolve_ip_for_localhost = resolve


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Ray takes SIGTERM for itself, to print where every thread is and die: this process's own handlers come back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # no other may set them
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _lets_in(address: str, token: str | None) -> bool:
    """Whether who shows this token, by default this user's own, is let in.

    Asked in another process, since Ray reads its token once.
    """
    code = f"from ray._raylet import GcsClient; GcsClient(address={address!r}); print('let in')"
    env = os.environ | {"RAY_gcs_server_request_timeout_seconds": "1"}
    if token is not None:
        env["RAY_AUTH_TOKEN"] = token
    with contextlib.suppress(subprocess.TimeoutExpired):
        asked = subprocess.run(
            [sys.executable, "-c", code],
            env=env,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ASK_S,
        )
        return "let in" in asked.stdout
    return False
