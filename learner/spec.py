"""What a learner process is started with. Light: the launcher imports it without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.episodes import Problem, Task


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """What the launcher tells every learner rank.

    endpoint: ZeroMQ address that rank 0 binds
    environment: fingerprint that workers must have in common with the run
    seeds: the problems that each task's buffer starts with
    probe: token ids that both sides score after every weight sync
    stop_file: the run ends after the step during which this file appears
    """

    endpoint: str
    run_folder: Path
    environment: str
    seeds: Mapping[Task, Sequence[Problem]]
    probe: Sequence[int]
    stop_file: Path
