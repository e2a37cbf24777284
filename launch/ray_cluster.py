"""The processes of a run as Ray's actors: places, starts, watches and ends them.

Ray could start an actor again by itself, but with the arguments and the environment of the first time, at once, and
whether or not the old one's engine is gone. So every start is a new actor; launch/supervisor.py says when.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Self

from launch import marked_processes
from launch.actors import LearnerProcess, RolloutProcess, Surroundings
from launch.placement import learner_names
from launch.processes import free_port, killed_for_memory, within
from launch.ray_instance import NO_GPU_CHOICE, RayError, RayTaskError, RuntimeEnvSetupError, ray
from launch.ray_machines import Machines
from launch.supervisor import Ended, ProcessDied
from learner.spec import LearnerSpec
from rollout.worker import WorkerSpec
from shared.config import Config
from shared.errors import PrimezeroError

NOTES_INTERVAL_S = 2.0
BEATS_INTERVAL_S = 2.0
# For what Ray answers in a moment, unless its own processes are stopped or stuck.
ANSWER_S = 30.0
SHUTDOWN_S = 20.0


class Cluster:
    """The processes of a run, in the places that `launch/placement.py` gives them.

    Use as a context manager: leaving it, on whatever path, ends every process.

    folder: private, on this machine; run_folder: has logs/
    on_use: told every few seconds which shared memory the processes have been seen to use
    check: called between the steps of a start, to raise what ends it
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        run_folder: Path,
        *,
        on_use: Callable[[Collection[Path]], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._logs = run_folder / "logs"
        self._machines = Machines(config, folder, run_folder, on_use, check)
        self._running: dict[Any, str] = {}
        self._actors: dict[str, Any] = {}
        self._beats: dict[str, int] = {}
        self._asked: dict[str, Any] = {}
        self._asked_at: dict[str, float] = {}
        self._noted_at = 0.0
        self._killed_for_memory = killed_for_memory()

    def __enter__(self) -> Self:
        try:
            self._machines.open()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def host(self) -> str:
        """The address of this machine at which the first learner rank listens."""
        return self._machines.host

    def described(self) -> list[str]:
        """Where the processes are, in lines for the screen."""
        return self._machines.described()

    def _end(self) -> None:
        def shut_down() -> None:
            with contextlib.suppress(PrimezeroError):  # what does not leave is killed
                within(SHUTDOWN_S, "ending the run's processes", self._shut_down)

        self._machines.close(shut_down)

    def _shut_down(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        ray.shutdown()

    def start_rollout(self, config: Config, spec: WorkerSpec) -> None:
        """Start one rollout worker."""
        self._start(RolloutProcess, spec.name, _thread_limits(config.rollout.threads), config, spec)

    def start_learner(self, config: Config, spec: LearnerSpec) -> None:
        """Start all learner ranks."""
        rendezvous = {"MASTER_ADDR": self.host, "MASTER_PORT": str(free_port(self.host))}
        for rank, name in enumerate(learner_names(config)):
            # Each sees one GPU at most.
            ranks = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(config.learner.ranks)}
            env = _thread_limits(config.learner.threads) | rendezvous | ranks
            self._start(LearnerProcess, name, env, config, spec, rank)

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
        return [self._ended(self._running.pop(reference), reference) for reference in ready]

    def _ended(self, name: str, reference: Any) -> Ended:
        ended = _ended(name, reference)
        before, self._killed_for_memory = self._killed_for_memory, killed_for_memory()
        if isinstance(ended.error, ProcessDied) and self._killed_for_memory > before:
            known = (
                "the kernel has ended processes of this machine for want of memory: primezero plan says what needs it"
            )
            return Ended(name, error=ProcessDied(known))
        return ended

    def lost(self) -> dict[str, str]:
        """Addresses of machines that are gone, by the names of the processes that have their place there."""
        return self._machines.lost()

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

    def resident_bytes(self) -> dict[str, int]:
        """Memory of each process with all that it has started, as of a few seconds ago."""
        return self._machines.resident_bytes()

    def end(self, names: Collection[str]) -> None:
        """End these processes and all that they have started, and remove what they leave in shared memory.

        Raises PrimezeroError when one cannot be killed.
        """
        self._note()
        self._running = {reference: name for reference, name in self._running.items() if name not in names}
        actors = [self._actors.pop(name) for name in names if name in self._actors]
        within(ANSWER_S, f"ending {' and '.join(names)}", lambda: [ray.kill(actor) for actor in actors])
        # Two engines, or two learners, must never share the machine.
        self._machines.end(names)

    def _note(self) -> None:
        self._machines.note()
        self._noted_at = time.monotonic()

    def _start(self, process: type, name: str, env: Mapping[str, str], config: Config, *arguments: object) -> None:
        folder = self._machines.folder(name)
        if config.placement.resolved_device == "cpu":
            env = {**env, "CUDA_VISIBLE_DEVICES": ""}  # else Ray's choice
        # A machine's Ray may have been started with it: every process would have the first GPU.
        env_vars = {**env, NO_GPU_CHOICE: "0", marked_processes.VARIABLE: f"{folder}/{name}"}
        # Two threads, so that `beats` is answered beside `run`.
        options = {"max_concurrency": 2, "runtime_env": {"env_vars": env_vars}, **self._machines.options(name)}
        actor = ray.remote(process).options(**options).remote()
        self._actors[name] = actor
        self._beats[name], self._asked_at[name] = -1, time.monotonic()
        self._asked.pop(name, None)
        around = Surroundings(self._logs / f"{name}.log", folder / name, self.host, self._machines.cores(name))
        self._running[actor.run.remote(config, *arguments, around)] = name


def _ended(name: str, reference: Any) -> Ended:
    try:
        return Ended(name, result=ray.get(reference, timeout=ANSWER_S))
    except RayTaskError as error:
        died = isinstance(error.cause, ChildProcessError)
        return Ended(name, error=ProcessDied(str(error.cause)) if died else error.cause)
    except RayError as error:
        # Where it never came to life, the last line says why; of one that was killed Ray has a page of guesses.
        unborn = isinstance(error, RuntimeEnvSetupError) or getattr(error, "actor_init_failed", False)
        return Ended(name, error=ProcessDied(str(error).strip().splitlines()[-1] if unborn else ""))


def _thread_limits(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_NUM_THREADS")}
