"""Ray: starts, places and watches the run's processes. The only module that imports Ray.

Ray could start an actor again by itself, but with the arguments and the environment of the first time, at once, and
whether or not the old one's engine is gone. So every start is a new actor; launch/supervisor.py says when.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from launch import marked_processes, segments
from launch.supervisor import Ended, ProcessDied
from learner.progress import Summary
from learner.spec import LearnerSpec
from rollout.worker import WorkerSpec
from shared.config import Config
from shared.errors import PrimezeroError

# Read by Ray while it is imported or started. Its workers are niced by default, which would starve them
# beside anything else on the machine.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Otherwise the raylet has a page of guesses printed here for every process that dies.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
# Whoever may speak to Ray can have code run here.
os.environ["RAY_AUTH_MODE"] = "token"
import psutil
import ray
import ray._private.services
from ray.exceptions import RayError, RayTaskError

NOTES_INTERVAL_S = 2.0
LEAVE_S = 3.0
KILLED_S = 30.0
START_ATTEMPTS = 3
OBJECT_STORE_BYTES = 100 * 2**20
TOKEN = secrets.token_hex(32)


class RolloutProcess:
    """Ray actor: one rollout worker."""

    def run(self, config: Config, spec: WorkerSpec, log_file: Path) -> None:
        """Work until the learner says Bye."""
        from launch.processes import log_to_file
        from rollout.worker import run_worker

        log_to_file(log_file)
        run_worker(config, spec)


class LearnerProcess:
    """Ray actor: one learner rank."""

    def run(self, config: Config, spec: LearnerSpec, rank: int, log_file: Path) -> Summary | None:
        """Train; rank 0 returns the summary."""
        from launch.processes import log_to_file
        from learner.trainer import run_learner

        log_to_file(log_file)
        return run_learner(config, spec, rank=rank, world_size=config.learner.ranks, local_rank=rank)


class Cluster:
    """A Ray instance of this run's own on this machine, and the processes it has started.

    Use as a context manager: leaving it, on whatever path, ends every process.
    """

    def __init__(self, folder: Path, log_folder: Path) -> None:
        self._folder = folder
        self._log_folder = log_folder
        self._running: dict[Any, str] = {}
        self._actors: dict[str, Any] = {}
        self._trees: dict[str, set[psutil.Process]] = {}
        self._segments: set[Path] = set()
        self._noted_at = 0.0

    def __enter__(self) -> Self:
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start_ray()
                return self
            except PrimezeroError:  # an interrupt
                self._end()
                raise
            except Exception as error:
                self._end()
                # Ray gives its own processes 30 s, which a busy machine may exceed.
                if attempt == START_ATTEMPTS:
                    raise PrimezeroError(
                        f"Ray did not start in {attempt} attempts: {error} It keeps its sockets in {self._folder}: is "
                        "that path short (TMPDIR), is there room, is the machine very busy?"
                    ) from error
        raise AssertionError("unreachable")

    def _start_ray(self) -> None:
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(TOKEN)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        os.environ.pop("RAY_AUTH_TOKEN", None)  # it would count for more
        with _loopback():
            self._init_ray()

    def _init_ray(self) -> None:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=os.cpu_count(),
            num_gpus=0,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self._folder),
            _node_ip_address="127.0.0.1",
        )

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._note()
        processes = {*psutil.Process().children(recursive=True), *set().union(*self._trees.values())}
        for actor in self._actors.values():
            ray.kill(actor)
        ray.shutdown()
        # Some of Ray's own helpers would stay for minutes.
        marked_processes.end(processes, leave_s=LEAVE_S, killed_s=LEAVE_S)
        segments.remove(self._segments)

    def start_rollout(self, config: Config, spec: WorkerSpec) -> None:
        """Start one rollout worker."""
        sockets = self._folder / spec.name
        shutil.rmtree(sockets, ignore_errors=True)
        sockets.mkdir(mode=0o700)
        # vLLM's processes talk over socket files, which a killed one leaves behind. Shorter paths than Ray's own.
        env = _thread_limits(config.rollout.threads) | {"VLLM_RPC_BASE_PATH": str(sockets)}
        self._start(RolloutProcess, spec.name, env, config, spec)

    def start_learner(self, config: Config, spec: LearnerSpec) -> None:
        """Start all learner ranks."""
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo"}
        for rank in range(config.learner.ranks):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": config.learner.ranks}
            env = _thread_limits(config.learner.threads) | rendezvous | {k: str(v) for k, v in ranks.items()}
            self._start(LearnerProcess, f"learner-{rank}", env, config, spec, rank)

    def running(self) -> set[str]:
        """Names of the processes still at work."""
        return set(self._running.values())

    def poll(self, timeout_s: float) -> list[Ended]:
        """How those processes ended that did so within the timeout."""
        if time.monotonic() - self._noted_at > NOTES_INTERVAL_S:
            self._note()
        if not self._running:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=timeout_s)
        return [_ended(self._running.pop(reference), reference) for reference in ready]

    def end(self, names: Collection[str]) -> None:
        """End these processes and all that they have started, and remove what they leave in shared memory.

        Raises PrimezeroError when one cannot be killed.
        """
        self._note()
        self._running = {reference: name for reference, name in self._running.items() if name not in names}
        for name in names:
            if (actor := self._actors.pop(name, None)) is not None:
                ray.kill(actor)
        # Two engines, or two learners, must never share the machine.
        tree = set().union(*(self._trees.pop(name, set()) for name in names))
        if left := marked_processes.end(tree, leave_s=LEAVE_S, killed_s=KILLED_S):
            raise PrimezeroError(
                f"a process of {' and '.join(names)} cannot be killed (pid {', '.join(str(p.pid) for p in left)}), so "
                "none is started in its place: is a device or a file system stuck?"
            )
        leaked = self._segments - segments.used_by(self._note())
        segments.remove(leaked)
        self._segments -= leaked

    def _note(self) -> set[psutil.Process]:
        """Living processes. They and the shared memory they use are remembered: when killed, they cannot be asked."""
        living: set[psutil.Process] = set()
        for mark, processes in marked_processes.marked(self._mark("")).items():
            self._trees.setdefault(mark.removeprefix(self._mark("")), set()).update(processes)
            living |= processes
        self._segments |= segments.used_by(living)
        self._noted_at = time.monotonic()
        return living

    def _start(self, process: type, name: str, env: Mapping[str, str], *arguments: object) -> None:
        env_vars = {**env, marked_processes.VARIABLE: self._mark(name)}
        actor = ray.remote(process).options(num_cpus=0, runtime_env={"env_vars": env_vars}).remote()
        self._actors[name] = actor
        self._running[actor.run.remote(*arguments, self._log_file(name))] = name

    def _mark(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _log_file(self, name: str) -> Path:
        return self._log_folder / f"{name}.log"


def _ended(name: str, reference: Any) -> Ended:
    try:
        return Ended(name, result=ray.get(reference))
    except RayTaskError as error:
        return Ended(name, error=error.cause)
    except RayError:  # it died, or never came to life; Ray's reasons are a page of guesses
        return Ended(name, error=ProcessDied())


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Ray takes 127.0.0.1 for this machine's outer address, at which all that it starts would then listen."""
    resolve = ray._private.services.resolve_ip_for_localhost
    ray._private.services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        ray._private.services.resolve_ip_for_localhost = resolve


def _thread_limits(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_NUM_THREADS")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
