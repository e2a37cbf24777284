"""Ray: starts, places and supervises the run's processes. The only module that imports Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from launch import segments
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
import psutil
import ray
from ray.exceptions import RayActorError, RayTaskError

SEGMENTS_INTERVAL_S = 2.0
HELPERS_LEAVE_S = 3.0
START_ATTEMPTS = 3
OBJECT_STORE_BYTES = 100 * 2**20


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
        self._actors: list[Any] = []
        self._segments: set[Path] = set()
        self._segments_seen_at = 0.0

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
        self._note_segments()
        processes = psutil.Process().children(recursive=True)
        for actor in self._actors:
            ray.kill(actor)
        ray.shutdown()
        # Some of Ray's own helpers would stay for minutes.
        _, staying = psutil.wait_procs(processes, timeout=HELPERS_LEAVE_S)
        for process in staying:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(staying, timeout=HELPERS_LEAVE_S)
        segments.remove(self._segments)

    def start_rollout(self, config: Config, spec: WorkerSpec) -> None:
        """Start one rollout worker."""
        self._start(RolloutProcess, spec.name, _thread_limits(config.rollout.threads), config, spec)

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

    def poll(self, timeout_s: float) -> dict[str, Summary | None]:
        """What the processes that ended within the timeout returned, by name.

        Raises the PrimezeroError that ended one of them, or one that names its log.
        """
        if time.monotonic() - self._segments_seen_at > SEGMENTS_INTERVAL_S:
            self._note_segments()
        ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=timeout_s)
        results = {}
        for reference in ready:
            name = self._running.pop(reference)
            try:
                results[name] = ray.get(reference)
            except RayTaskError as error:
                if isinstance(error.cause, PrimezeroError):
                    raise error.cause from None
                raise PrimezeroError(f"{name} failed: {error.cause!r}; see {self._log_file(name)}") from error
            except RayActorError as error:
                raise PrimezeroError(f"the process of {name} died; see {self._log_file(name)}") from error
        return results

    def _note_segments(self) -> None:
        """Remember the shared memory in use: of a process that is killed, nobody can ask any more."""
        self._segments |= segments.segments_of_descendants()
        self._segments_seen_at = time.monotonic()

    def _start(self, process: type, name: str, env: Mapping[str, str], *arguments: object) -> None:
        actor = ray.remote(process).options(num_cpus=0, runtime_env={"env_vars": dict(env)}).remote()
        self._actors.append(actor)
        self._running[actor.run.remote(*arguments, self._log_file(name))] = name

    def _log_file(self, name: str) -> Path:
        return self._log_folder / f"{name}.log"


def _thread_limits(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_NUM_THREADS")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
