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
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from launch import marked_processes, segments
from launch.actors import LearnerProcess, RolloutProcess
from launch.processes import free_port, within
from launch.supervisor import Ended, ProcessDied
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
BEATS_INTERVAL_S = 2.0
# For what Ray answers in a moment, unless its own processes are stopped or stuck.
ANSWER_S = 30.0
SHUTDOWN_S = 20.0
LEAVE_S = 3.0
KILLED_S = 30.0
START_ATTEMPTS = 3
START_S = 120.0
OBJECT_STORE_BYTES = 100 * 2**20
TOKEN = secrets.token_hex(32)


class Cluster:
    """A Ray instance of this run's own on this machine, and the processes it has started.

    Use as a context manager: leaving it, on whatever path, ends every process.

    on_use: told every few seconds which shared memory the processes have been seen to use
    """

    def __init__(
        self, folder: Path, log_folder: Path, *, on_use: Callable[[Collection[Path]], None] = lambda _: None
    ) -> None:
        self._folder = folder
        self._log_folder = log_folder
        self._on_use = on_use
        self._running: dict[Any, str] = {}
        self._actors: dict[str, Any] = {}
        self._beats: dict[str, int] = {}
        self._asked: dict[str, Any] = {}
        self._asked_at: dict[str, float] = {}
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
        # Ray's own processes have it from here; those of the run are given another.
        os.environ[marked_processes.VARIABLE] = self._mark("ray")
        # Its own limits do not cover a process of its that stops in the middle. Killed, it is noticed.
        late = threading.Timer(START_S, self._kill_ray)
        late.daemon = True
        late.start()
        try:
            with _loopback():
                self._init_ray()
        finally:
            late.cancel()

    def _kill_ray(self) -> None:
        for process in marked_processes.marked(self._mark("ray")).get(self._mark("ray"), ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _init_ray(self) -> None:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=os.cpu_count(),
            num_gpus=0,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # A folder of its own: Ray lets everybody write there, and workers' sockets are beside it.
            _temp_dir=str(self._folder / "ray"),
            _node_ip_address="127.0.0.1",
        )

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._note()
        processes = marked_processes.unnamed(self._folder).union(*self._trees.values())
        with contextlib.suppress(PrimezeroError):  # what does not leave is killed
            within(SHUTDOWN_S, "ending the run's processes", self._shut_down)
        # Some of Ray's own helpers would stay for minutes.
        marked_processes.end(processes, leave_s=LEAVE_S, killed_s=LEAVE_S)
        os.environ.pop(marked_processes.VARIABLE, None)
        segments.remove(self._segments)

    def _shut_down(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        ray.shutdown()

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
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
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

    def beats(self) -> dict[str, int]:
        """Signs of life that each process at work has given, as far as they have answered by now; −1 before."""
        for name in self.running():
            asked = self._asked.get(name)
            if asked is None and time.monotonic() - self._asked_at[name] > BEATS_INTERVAL_S:
                self._asked[name] = self._actors[name].beats.remote()
                self._asked_at[name] = time.monotonic()
            elif asked is not None and ray.wait([asked], timeout=0)[0]:
                del self._asked[name]
                with contextlib.suppress(RayError):  # it has ended: `poll` tells how
                    self._beats[name] = ray.get(asked, timeout=ANSWER_S)
        return {name: self._beats[name] for name in sorted(self.running())}

    def end(self, names: Collection[str]) -> None:
        """End these processes and all that they have started, and remove what they leave in shared memory.

        Raises PrimezeroError when one cannot be killed.
        """
        self._note()
        self._running = {reference: name for reference, name in self._running.items() if name not in names}
        actors = [self._actors.pop(name) for name in names if name in self._actors]
        within(ANSWER_S, f"ending {' and '.join(names)}", lambda: [ray.kill(actor) for actor in actors])
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
        self._on_use(self._segments)
        self._noted_at = time.monotonic()
        return living

    def _start(self, process: type, name: str, env: Mapping[str, str], *arguments: object) -> None:
        env_vars = {**env, marked_processes.VARIABLE: self._mark(name)}
        # Two threads, so that `beats` is answered beside `run`.
        options = {"num_cpus": 0, "max_concurrency": 2, "runtime_env": {"env_vars": env_vars}}
        actor = ray.remote(process).options(**options).remote()
        self._actors[name] = actor
        self._beats[name], self._asked_at[name] = -1, time.monotonic()
        self._asked.pop(name, None)
        self._running[actor.run.remote(*arguments, self._log_file(name))] = name

    def _mark(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _log_file(self, name: str) -> Path:
        return self._log_folder / f"{name}.log"


def _ended(name: str, reference: Any) -> Ended:
    try:
        return Ended(name, result=ray.get(reference, timeout=ANSWER_S))
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
