"""A run's records as the launcher reads them: what there was, what is new, and whoever is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from launch.run_folder import EVALUATIONS_FILE, METRICS_FILE
from launch.supervisor import Restart

Record = Mapping[str, Any]


class Observer(Protocol):
    """Is told what happens in a run, in order."""

    def step(self, record: Record) -> None:
        """A line of metrics.jsonl."""

    def evaluation(self, record: Record) -> None:
        """A line of evaluations.jsonl."""

    def restart(self, restart: Restart) -> None:
        """A process is started again; what the learner had done after `restart.origin.version` will come again."""


class Records:
    """Follows metrics.jsonl and evaluations.jsonl of a run that begins, or goes on, at `version`.

    past_steps, past_evaluations: on record from before, up to that version; the learner cuts off the rest
    progress: of each unit (see launch/supervisor.py), what it has done that can be told: of the learner, the furthest
        step so far; of a rollout worker, the tickets that it has closed in the steps since
    """

    def __init__(self, run_folder: Path, version: int) -> None:
        metrics, evaluations = run_folder / METRICS_FILE, run_folder / EVALUATIONS_FILE
        self.past_steps = _up_to(metrics, "step", version)
        self.past_evaluations = _up_to(evaluations, "version", version)
        self.progress = Counter({"learner": version})
        self._metrics = Follower(metrics)
        self._evaluations = Follower(evaluations)

    def tell(self, observers: Sequence[Observer]) -> None:
        """Hand on what has been recorded since the last time."""
        for record in self._metrics.new():
            self.progress["learner"] = max(self.progress["learner"], record.get("step", 0))
            self.progress.update(record.get("workers", {}).get("tickets_closed", {}))
            for observer in observers:
                observer.step(record)
        for record in self._evaluations.new():
            for observer in observers:
                observer.evaluation(record)


class Guarded:
    """An observer that may fail without ending the run: it is told no more then, and `complain` says so once."""

    def __init__(self, name: str, observer: Observer, complain: Callable[[str], None]) -> None:
        self._name = name
        self._observer: Observer | None = observer
        self._complain = complain

    def step(self, record: Record) -> None:
        self._call("step", record)

    def evaluation(self, record: Record) -> None:
        self._call("evaluation", record)

    def restart(self, restart: Restart) -> None:
        self._call("restart", restart)

    def _call(self, method: str, argument: object) -> None:
        if self._observer is None:
            return
        try:
            getattr(self._observer, method)(argument)
        except Exception as error:
            self._observer = None
            self._complain(f"{self._name} has failed and is off from here on: {error!r}")


class Follower:
    """Reads what is appended to a file from here on; a resumed run first cuts off what it goes back behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The objects of the lines that have been completed since the last time.

        A file that was cut off and has grown again while nobody looked begins, from here, with the end of a line, which
        is passed over.
        """
        if not self._path.exists():
            return
        self._position = min(self._position, self._path.stat().st_size)
        with self._path.open("rb") as file:
            file.seek(self._position)
            while (line := file.readline()).endswith(b"\n"):
                self._position = file.tell()
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                yield record


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record by their path, as in `tasks/deduction/accuracy`."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers


def _up_to(path: Path, key: str, version: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            if record[key] > version:
                break
        except (ValueError, KeyError, TypeError):
            break  # torn, as the last line may be, or damaged; the learner cuts it off, with all that follows
        records.append(record)
    return records
