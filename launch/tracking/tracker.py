"""Feeds the trackers on a thread of its own: a slow or failing service holds nothing up."""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from launch.records import Record, Records, flat
from launch.supervisor import Restart
from shared.config import Config
from shared.errors import ConfigError, InstallationError
from shared.metrics import replace_file

STATE_FILE = "tracking.json"
TENSORBOARD_FOLDER = "tensorboard"
CLOSE_S = 30.0


class Service(Protocol):
    """Takes the values of versions."""

    def log(self, version: int, values: Mapping[str, float]) -> None:
        """Record them."""

    def rewind(self, version: int) -> bool:
        """Forget what came after this version; whether it can."""

    def close(self) -> None:
        """Record what is left."""


def check_tracking(config: Config) -> None:
    """InstallationError where a tracker that is asked for is not installed. TensorBoard, on by default, is no reason
    to end."""
    for name in config.tracking.names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise InstallationError(
                f"tracking.names has {name}, which is not installed: `pip install {name}` into the "
                "environment of primezero, or leave it out of tracking.names"
            )


_State = dict[str, dict[str, Any]]


class Tracking:
    """An observer that hands a run's records to its trackers, each step and evaluation once.

    Where the learner goes back, TensorBoard is told to forget; the others keep what they were given first. How far
    each has come is in tracking.json, so that a resumed run goes on in the same records.

    Raises ConfigError when a tracker does not start.
    """

    def __init__(self, config: Config, run_folder: Path, version: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._state_file = run_folder / STATE_FILE
        self._state = _read_state(self._state_file)
        self._services: dict[str, Service] = {}
        for name in config.tracking.names:
            self._open(name, config, run_folder, version)
        self._save()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def catch_up(self, records: Records) -> None:
        """Hand on what was recorded before this start and has not reached a tracker."""
        for record in records.past_steps:
            self.step(record)
        for record in records.past_evaluations:
            self.evaluation(record)

    def step(self, record: Record) -> None:
        values = flat({key: value for key, value in record.items() if key != "step"})
        self._queue.put(lambda: self._log("steps", record["step"], values))

    def evaluation(self, record: Record) -> None:
        values = flat({key: value for key, value in record.items() if key != "version"}, "evaluation/")
        self._queue.put(lambda: self._log("evaluations", record["version"], values))

    def restart(self, restart: Restart) -> None:
        version = restart.origin.version
        if version is not None:
            self._queue.put(lambda: self._go_back(version))

    def close(self) -> None:
        """Hand on what is left, for CLOSE_S at most."""
        self._queue.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._say(f"{', '.join(self._services)} did not take the last records within {CLOSE_S:g} s")

    def _open(self, name: str, config: Config, run_folder: Path, version: int) -> None:
        known = self._state.setdefault(name, {"steps": -1, "evaluations": -1, "run": None})
        try:
            if name == "tensorboard":
                from launch.tracking.tensorboard import TensorBoard

                self._services[name] = TensorBoard(run_folder / TENSORBOARD_FOLDER)
                self._rewind(name, version)
                return
            from launch.tracking import services

            service = services.open_service(name, config, known["run"])
            known["run"] = service.run_id
            self._services[name] = service
        except ImportError as error:
            if name != "tensorboard":
                raise InstallationError(f"{name}, of tracking.names, cannot be imported: {error}") from error
            self._say(f"no TensorBoard files: {error} (`pip install tensorboard`, or --tracking.names [])")
        except Exception as error:
            raise ConfigError(
                f"{name}, of tracking.names, did not start: {error}. Set it up, or leave it out of tracking.names"
            ) from error

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()
        for name in list(self._services):
            self._try(name, self._services[name].close)

    def _log(self, kind: str, version: int, values: Mapping[str, float]) -> None:
        for name, service in list(self._services.items()):
            if version > self._state[name][kind] and self._try(name, service.log, version, values):
                self._state[name][kind] = version
        self._save()

    def _go_back(self, version: int) -> None:
        for name in list(self._services):
            self._try(name, self._rewind, name, version)
        self._save()

    def _rewind(self, name: str, version: int) -> None:
        if self._services[name].rewind(version):
            known = self._state[name]
            for kind in ("steps", "evaluations"):
                known[kind] = min(known[kind], version)

    def _try(self, name: str, call: Callable[..., None], *arguments: object) -> bool:
        try:
            call(*arguments)
        except Exception as error:
            self._services.pop(name, None)
            self._say(f"{name} has failed and gets nothing more of this run: {error!r}")
            return False
        return True

    def _save(self) -> None:
        try:
            replace_file(self._state_file, json.dumps(self._state) + "\n")
        except OSError:  # a full disk: the learner says so
            return


def _read_state(file: Path) -> _State:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_State) if file.exists() else {}
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{file}, which says how far each tracker has come, is damaged: remove it, and they are given all once more"
        ) from error
