"""A rollout worker and a learner as a run has them, each on cores that are named, whose steps a benchmark directs.

Both run what `primezero train` runs in its processes, without Ray, which only starts and watches them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from launch import segments
from launch.bench.started_run import last_lines
from launch.processes import free_port, log_to_file
from learner.spec import LearnerSpec
from rollout.engine_processes import kill, with_descendants
from rollout.worker import WorkerSpec
from shared.config import Config
from shared.errors import PrimezeroError
from shared.processes import signal_at_parents_death

if TYPE_CHECKING:
    from learner.batch import TrainingBatch
    from learner.ranks import Leader
    from learner.train_metrics import TrainMetrics

Cores = Collection[int]
_LEAVE_S = 30.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """The learner has a batch and is about to train on it.

    since: seconds from being told what to do with the last batch; trained: of these, in its update; response_tokens: of
    the batch
    """

    since: float
    trained: float
    response_tokens: int


class SplitProcesses:
    """The two processes. `next_batch` and `train` or `skip` in turn, `steps` times, then `finish`.

    folder: for logs, records and sockets; private, with a short path
    rollout_cores, learner_cores: which each process and all that it starts may use
    Raises PrimezeroError, with the end of its log, when a process dies or nothing happens for `timeout_s`.
    """

    def __init__(
        self,
        config: Config,
        learner: LearnerSpec,
        worker: WorkerSpec,
        *,
        folder: Path,
        rollout_cores: Cores,
        learner_cores: Cores,
        timeout_s: float,
    ) -> None:
        self._folder, self._timeout_s = folder, timeout_s
        context = multiprocessing.get_context("spawn")
        self._director, directed = context.Pipe()
        self._learner = context.Process(
            target=_learner, args=(config, learner, folder / "learner.log", learner_cores, directed), name="learner"
        )
        self._rollout = context.Process(
            target=_rollout, args=(config, worker, folder / "rollout.log", rollout_cores), name="rollout"
        )
        for process in self._processes:
            process.start()
        directed.close()

    @property
    def _processes(self) -> tuple[BaseProcess, BaseProcess]:
        return self._learner, self._rollout

    def next_batch(self) -> Arrival:
        """Wait until the learner has its next batch; it waits for what it is to do with it."""
        arrival = self._receive()
        assert isinstance(arrival, Arrival)
        return arrival

    def train(self) -> None:
        """The learner trains on the batch, and goes on."""
        self._tell("train")

    def skip(self) -> None:
        """The learner goes on as if it had trained on the batch, in no time; the first batch is trained on anyway."""
        self._tell("skip")

    def train_alone(self) -> float:
        """The learner trains on the batch while the rollout's processes are stopped, and waits; seconds."""
        with self.stopped():
            self._tell("measure")
            seconds = self._receive()
        assert isinstance(seconds, float)
        return seconds

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The rollout's processes are stopped meanwhile."""
        processes = self._rollout_tree()
        try:
            for process in processes:
                process.suspend()
            yield
        finally:
            for process in reversed(processes):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def finish(self) -> None:
        """After the last step: both leave by themselves."""
        deadline = time.monotonic() + self._timeout_s
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode != 0:
                raise self._failed(process)

    def close(self) -> None:
        """End whatever still runs, and remove the shared memory that it had in use."""
        self._director.close()
        running = [*self._rollout_tree(), *_tree(self._learner)]
        used = segments.used_by(running)
        kill(running)
        segments.remove(used)
        for process in self._processes:
            process.join(_LEAVE_S)

    def _rollout_tree(self) -> list[psutil.Process]:
        return _tree(self._rollout)

    def _tell(self, what: Literal["train", "skip", "measure"]) -> None:
        try:
            self._director.send(what)
        except OSError as error:
            raise self._learner_died() from error

    def _receive(self) -> object:
        deadline = time.monotonic() + self._timeout_s
        while not self._director.poll(1.0):
            for process in self._processes:
                if process.exitcode is not None:
                    raise self._failed(process)
            if time.monotonic() > deadline:
                raise PrimezeroError(f"no batch within {self._timeout_s:g} s; the logs are in {self._folder}")
        try:
            return self._director.recv()
        except (EOFError, OSError) as error:
            raise self._learner_died() from error

    def _learner_died(self) -> PrimezeroError:
        self._learner.join(_LEAVE_S)
        return self._failed(self._learner)

    def _failed(self, process: BaseProcess) -> PrimezeroError:
        log = self._folder / f"{process.name}.log"
        how = "did not end" if process.exitcode is None else f"ended with {process.exitcode}"
        if process.exitcode == -signal.SIGKILL:
            how = "was killed, most often for want of memory"
        return PrimezeroError(f"the {process.name} process {how}:\n{last_lines(log)}")


def _tree(process: BaseProcess) -> list[psutil.Process]:
    if process.pid is None or process.exitcode is not None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return with_descendants([psutil.Process(process.pid)])
    return []


def _begin(log: Path, cores: Cores) -> None:
    signal_at_parents_death(signal.SIGKILL)
    os.sched_setaffinity(0, cores)  # before there is any thread or child to inherit it
    log_to_file(log)


def _rollout(config: Config, spec: WorkerSpec, log: Path, cores: Cores) -> None:
    _begin(log, cores)
    from rollout.worker import run_worker

    run_worker(config, spec, lambda: None)


def _learner(config: Config, spec: LearnerSpec, log: Path, cores: Cores, directed: Connection) -> None:
    _begin(log, cores)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(config.learner.threads),
    }
    from learner.trainer import run_learner

    def direct(leader: Leader) -> Any:
        return _DirectedPolicy(leader, directed)

    run_learner(config, spec, directed=direct)


class _DirectedPolicy:
    """The policy, but that what is done with a batch is asked for; nothing is saved."""

    def __init__(self, leader: Leader, directed: Connection) -> None:
        self._leader, self._directed = leader, directed
        self._told, self._trained = time.perf_counter(), 0.0
        self._last: TrainMetrics | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._leader, name)

    def train(self, batch: TrainingBatch) -> TrainMetrics:
        since = time.perf_counter() - self._told
        self._directed.send(Arrival(since, self._trained, len(batch.behaviour_logprobs)))
        what = self._directed.recv()
        self._told, self._trained = time.perf_counter(), 0.0
        if what == "skip" and self._last is not None:
            return self._last
        self._last = self._leader.train(batch)
        self._trained = time.perf_counter() - self._told
        if what == "measure":
            self._directed.send(self._trained)
        return self._last

    def save(self, folder: Path) -> None:
        pass

    def save_pretrained(self, folder: Path) -> None:
        pass
