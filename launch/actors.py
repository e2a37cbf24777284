"""The processes of a run as Ray starts them: plain classes, which import what they run only when they run it."""

from __future__ import annotations

from pathlib import Path

from learner.progress import Summary
from learner.spec import LearnerSpec
from rollout.worker import WorkerSpec
from shared.config import Config
from shared.pulse import Pulse


class RolloutProcess:
    """Ray actor: one rollout worker."""

    def __init__(self) -> None:
        self._pulse = Pulse()

    def beats(self) -> int:
        """Signs of life so far. Called beside `run`, on a thread of its own."""
        return self._pulse.beats

    def run(self, config: Config, spec: WorkerSpec, log_file: Path) -> None:
        """Work until the learner says Bye."""
        from launch.processes import log_to_file
        from rollout.worker import run_worker

        log_to_file(log_file)
        run_worker(config, spec, self._pulse.beat)


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

    def run(self, config: Config, spec: LearnerSpec, rank: int, log_file: Path) -> Summary | None:
        """Train; rank 0 returns the summary."""
        self._leads = rank == 0
        from launch.processes import log_to_file
        from learner.trainer import run_learner

        log_to_file(log_file)
        return run_learner(
            config, spec, rank=rank, world_size=config.learner.ranks, local_rank=rank, beat=self._pulse.beat
        )
