"""What a learner process is started with. Light: the launcher imports it without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.episodes import Problem, Task
from shared.transport import ServerKeys


@dataclass(frozen=True, slots=True)
class SeedStage:
    """Seed problems that enter the problem buffer before the tickets of `batch` are made."""

    batch: int
    problems: Mapping[Task, Sequence[Problem]]


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """What the launcher tells every learner rank.

    endpoint: ZeroMQ address that rank 0 binds; keys: what it shows there, and asks for, over tcp
    host: address of rank 0's machine at which weight broadcasts listen
    environment: fingerprint that workers must have in common with the run
    seeds: what the problem buffer starts with and, under a curriculum, is given later; the first is for batch 0
    probe: token ids that both sides score after every weight sync
    checkpoints: where they are kept; resume_from: the one that the run goes on from, if any
    lineage: how often the run, or its learner, has been started before, so that a ticket's name never means two things
    stop_file: the run ends after the step during which this file appears
    replaces: whether it is started in the place of a learner that died, while the workers that are left go on
    """

    endpoint: str
    run_folder: Path
    environment: str
    seeds: Sequence[SeedStage]
    probe: Sequence[int]
    checkpoints: Path
    resume_from: Path | None
    lineage: int
    stop_file: Path
    keys: ServerKeys | None = None
    host: str = "127.0.0.1"
    replaces: bool = False
