"""Where the processes of a run are, and on what."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from shared.config_section import Section, TextOrNone

Device = Literal["cpu", "cuda"]


class PlacementConfig(Section):
    """Where rollout workers and learner ranks are. Going on elsewhere changes nothing but this section."""

    kind: Literal["colocated", "split", "cluster"] = Field(
        "colocated",
        description="colocated: engines on the first learner rank's GPU, each further rank on one of its own; split: "
        "engines and ranks each on a GPU of its own; cluster: as split, over the machines of a Ray cluster. On the "
        "CPU processes have cores instead",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="what engines and learner compute on; auto: cuda where this machine has a GPU"
    )
    ray_address: TextOrNone = Field(
        None, description="cluster: host:port of the Ray cluster that this machine is part of"
    )
    host: str = Field(
        "auto",
        description="the address of this machine at which stream, learner ranks and weight broadcasts listen, and no "
        "other; auto: in a cluster the one that Ray knows it by, else loopback",
    )
    pin_cores: bool = Field(
        False,
        description="on one machine's CPU: keep each worker with its engine, and each rank, to as many cores as it has "
        "threads, and to no others; a worker's own process then shares its engine's cores",
    )

    @field_validator("ray_address")
    @classmethod
    def _host_and_port(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}", address):
            raise ValueError("must be host:port, as `ray start` was given it")
        return address

    @field_validator("host")
    @classmethod
    def _one_address(cls, host: str) -> str:
        if host != "auto" and not re.fullmatch(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:]+", host):
            raise ValueError("must be auto, or a name or address of this machine")
        if host in ("0.0.0.0", "::"):
            raise ValueError("must be one address of this machine: who listens at all of them is open to every network")
        return host

    @model_validator(mode="after")
    def _address_of_a_cluster(self) -> Self:
        if self.kind != "cluster" and self.ray_address is not None:
            raise ValueError(f"ray_address={self.ray_address} is for kind=cluster, not {self.kind}")
        return self

    @property
    def resolved_device(self) -> Device:
        """`device`, resolved by whether this machine has a GPU."""
        if self.device != "auto":
            return self.device
        return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def is_loopback(host: str) -> bool:
    """Whether an address, or a name, is one that no other machine reaches."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
