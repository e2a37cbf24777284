"""Trackers that are installed apart and keep their records at a service. Each library is imported only when named."""

from __future__ import annotations

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from shared.config import Config
from shared.config_file import values_by_key

VERSION = "version"  # what their plots have on the x axis
MLFLOW_BATCH = 1000  # metrics that one request takes
MLFLOW_PARAM_CHARACTERS = 500


class TrackingService(ABC):
    """What these have in common: what they have been given, they keep. run_id: to go on with the run another time"""

    run_id: str

    @abstractmethod
    def log(self, version: int, values: Mapping[str, float]) -> None:
        """Send the values of one version."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left."""

    def rewind(self, version: int) -> bool:
        """Whether what came after this version is forgotten: it is not."""
        return False


class WandB(TrackingService):
    """A Weights & Biases run. `run_id`: of the one to go on with."""

    def __init__(self, config: Config, run_id: str | None) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=config.tracking.project,
            name=config.run.name,
            id=run_id,
            resume="allow",
            config=settings(config),
            dir=str(config.run_folder),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric=VERSION)
        self.run_id = self._run.id

    def log(self, version: int, values: Mapping[str, float]) -> None:
        """Send the values of one version."""
        self._run.log({**values, VERSION: version})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MLflow(TrackingService):
    """An MLflow run. `run_id`: of the one to go on with."""

    def __init__(self, config: Config, run_id: str | None) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._metric = importlib.import_module("mlflow.entities").Metric
        self._client = mlflow.MlflowClient()
        if run_id is None:
            found = self._client.get_experiment_by_name(config.tracking.project)
            experiment = (
                self._client.create_experiment(config.tracking.project) if found is None else found.experiment_id
            )
            run_id = self._client.create_run(experiment, run_name=config.run.name).info.run_id
            for key, value in settings(config).items():
                self._client.log_param(run_id, key, value[:MLFLOW_PARAM_CHARACTERS])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def log(self, version: int, values: Mapping[str, float]) -> None:
        """Send the values of one version."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, version) for name, value in values.items()]
        for start in range(0, len(metrics), MLFLOW_BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + MLFLOW_BATCH])

    def close(self) -> None:
        """Say that the run is over."""
        self._client.set_terminated(self.run_id)


class Trackio(TrackingService):
    """A trackio run. It is known by its name; `run_id`: that of the one to go on with."""

    def __init__(self, config: Config, run_id: str | None) -> None:
        trackio: Any = importlib.import_module("trackio")
        # Another run of this name, in another folder or before it was overwritten, is not gone on with.
        self.run_id = run_id or f"{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._run = trackio.init(
            project=config.tracking.project, name=self.run_id, config=settings(config), resume="allow"
        )

    def log(self, version: int, values: Mapping[str, float]) -> None:
        """Send the values of one version."""
        self._run.log(dict(values), step=version)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def open_service(name: str, config: Config, run_id: str | None) -> TrackingService:
    """The one of this name, with a new run, or with that of `run_id`."""
    kinds: dict[str, type[WandB] | type[MLflow] | type[Trackio]] = {
        "wandb": WandB,
        "mlflow": MLflow,
        "trackio": Trackio,
    }
    return kinds[name](config, run_id)


def settings(config: Config) -> dict[str, str]:
    """Every configuration key with its value, as text."""
    return {key: str(value) for key, value in values_by_key(config).items()}
