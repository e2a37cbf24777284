"""Where a run is shown and recorded beside its own folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shared.config_section import Seconds, Section

PortOrNone = Annotated[
    Annotated[int, Field(ge=1, lt=2**16)] | None, BeforeValidator(lambda value: None if value == "none" else value)
]


class TrackingConfig(Section):
    """Experiment trackers, fed from metrics.jsonl and evaluations.jsonl."""

    names: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        ("tensorboard",),
        description='trackers, as in ["tensorboard", "wandb"]; tensorboard writes into the run\'s folder, the others '
        "are installed, logged in to and pointed at their server as each of them documents; []: none",
    )
    project: str = Field("primezero", min_length=1, description="wandb, trackio: the project; mlflow: the experiment")


class MonitorConfig(Section):
    """An HTTP endpoint of the launcher: /metrics for Prometheus, /healthz for a watchdog."""

    port: PortOrNone = Field(None, description="port of the endpoint; none: there is none")
    host: str = Field(
        "127.0.0.1", min_length=1, description="address it listens at; whoever reaches it can read the metrics"
    )
    quiet_s: Seconds = Field(
        60, description="/healthz answers 503 when a process has given no sign of life for so long"
    )
