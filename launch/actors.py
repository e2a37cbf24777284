"""What of a run Ray starts: plain classes, which import what they run only when they run it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from launch.installation import installation
from launch.local_processes import LocalProcesses
from launch.plan.devices import devices_here, smallest
from launch.private_folder import PrivateFolder, remove_leftovers
from launch.processes import be_private, keep_to, listen_towards, log_to_file, logged
from learner.progress import Summary
from learner.spec import LearnerSpec
from rollout.engine_vllm import check_environment
from rollout.worker import WorkerSpec
from shared.config import Config
from shared.processes import signal_at_parents_death
from shared.pulse import Pulse

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a process finds on its machine.

    log_file: takes what it says; sockets: a folder for its socket and temporary files, in one that is private
    host: the address at which the first learner rank listens; cores: that it keeps to, if any
    """

    log_file: Path
    sockets: Path
    host: str
    cores: tuple[int, ...] = ()

    def enter(self) -> None:
        """Settle in: before anything heavy is imported."""
        be_private()
        log_to_file(self.log_file)
        self.make_sockets()
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.sockets)  # what a killed process leaves goes with the start
        listen_towards(self.host)
        if self.cores:
            keep_to(self.cores)
        log.info("loads its libraries")

    def make_sockets(self) -> None:
        """The folder, empty: of a process that was killed socket files stay."""
        shutil.rmtree(self.sockets, ignore_errors=True)
        self.sockets.mkdir(mode=0o700)


class RolloutProcess:
    """Ray actor: one rollout worker."""

    def __init__(self) -> None:
        self._pulse = Pulse()

    def beats(self) -> int:
        """Signs of life so far. Called beside `run`, on a thread of its own."""
        return self._pulse.beats

    def run(self, config: Config, spec: WorkerSpec, around: Surroundings) -> None:
        """Work until the learner says Bye."""
        around.enter()
        with logged():
            from rollout.worker_process import run_worker_process

            run_worker_process(config, spec, self._pulse.beat)


class LearnerProcess:
    """Ray actor: one learner rank."""

    def __init__(self) -> None:
        self._pulse = Pulse()
        self._leads = True

    def beats(self) -> int:
        """Signs of life so far. Called beside `run`, on a thread of its own.

        A rank that follows waits for rank 0 without end, and when it hangs, rank 0 soon hangs with it: that it answers
        is enough.
        """
        if not self._leads:
            self._pulse.beat()
        return self._pulse.beats

    def run(self, config: Config, spec: LearnerSpec, rank: int, around: Surroundings) -> Summary | None:
        """Train; rank 0 returns the summary."""
        self._leads = rank == 0
        around.enter()
        with logged():
            check_environment()  # NCCL is vLLM's here
            from learner.device_memory import explain_full_memory
            from learner.trainer import run_learner

            with explain_full_memory(config.learner.gpu_memory_share):
                return run_learner(config, spec, rank=rank, world_size=config.learner.ranks, beat=self._pulse.beat)


class MachineKeeper:
    """Ray actor on a machine other than the launcher's: sees to what the run holds there.

    Ray ends it with the launcher; where it is killed before it could tidy up, its reaper does.
    """

    def __init__(self, run_folder: Path, machine: str) -> None:
        be_private()
        (run_folder / "logs").mkdir(parents=True, exist_ok=True)
        remove_leftovers(run_folder, machine)
        self._private = PrivateFolder(run_folder, machine)
        self._private.path.mkdir(mode=0o700)
        self._processes = LocalProcesses(self._private.path, self._private.note)

    def stay_no_longer_than_ray(self) -> None:
        """When this machine's Ray is killed, so is this process, and its reaper ends what Ray would leave running."""
        signal_at_parents_death(signal.SIGKILL)

    def folder(self) -> Path:
        """The private folder of this start on this machine."""
        return self._private.path

    def read(self, file: Path) -> bytes | None:
        """A small file; None where there is none here."""
        return file.read_bytes() if file.is_file() else None

    def installation(self) -> dict[str, str]:
        """As launch/installation.py tells of this machine."""
        return installation()

    def gpu_room(self, count: int) -> int:
        """Bytes that can be had of the fullest of the first so many GPUs of this machine."""
        if not os.environ.get("CUDA_VISIBLE_DEVICES"):  # Ray has hidden them from who asks for none
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        return smallest(devices_here()[:count]).room

    def note(self) -> dict[str, int]:
        """As `LocalProcesses.note`; their resident bytes."""
        self._processes.note()
        return self._processes.resident_bytes()

    def end(self, names: Collection[str]) -> list[int]:
        """As `LocalProcesses.end`."""
        return self._processes.end(names)

    def close(self) -> None:
        """End and remove everything."""
        self._processes.end_all()
        self._private.remove()
