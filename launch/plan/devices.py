"""The devices that a plan can be made for, and the one that is here."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import ConfigError, InstallationError

GIB = 2**30
# What CUDA tells of each as total, GiB, the smaller variant where there are two: less than its name says.
_USABLE_GIB = {
    "a100-40gb": 39.4,
    "a100-80gb": 79.1,
    "h100-80gb": 79.1,
    "h200": 139.7,
    "l40s": 44.4,
    "rtx4090": 23.5,
}
_QUERY_TIMEOUT_S = 30


@dataclass(frozen=True)
class Device:
    """A GPU. memory: bytes that can be had of it in all, as CUDA tells, without what the driver reserves for itself;
    used: what others have of it already."""

    name: str
    memory: int
    used: int = 0

    @property
    def room(self) -> int:
        """Bytes that can be had now."""
        return self.memory - self.used


# In place of one that is cut into slices: what of it is free for whom nvidia-smi does not tell in this way.
_SLICED = Device("", 0)

DEVICES = {name: Device(name, int(gib * GIB)) for name, gib in _USABLE_GIB.items()}


def named_device(name: str) -> Device:
    """ConfigError for one that is not in the table."""
    if name not in DEVICES:
        raise ConfigError(f"--device {name} is none of {', '.join(DEVICES)}: give --device-gib N instead")
    return DEVICES[name]


def device_here() -> Device:
    """The first GPU of this machine; InstallationError where there is none."""
    return devices_here()[0]


def devices_here() -> list[Device]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES lets be seen, as the driver tells; at least one, or
    InstallationError.

    Asked of nvidia-smi, since asking CUDA would make a context in this process, which takes memory as long as it lives.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise InstallationError("no GPU was found: there is no nvidia-smi on this machine. Is the driver installed?")
    query = "--query-gpu=index,uuid,mig.mode.current,name,memory.total,memory.reserved,memory.used"
    try:
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_QUERY_TIMEOUT_S,
            check=True,
        )
        rows = list(csv.reader(answer.stdout.splitlines(), skipinitialspace=True))
        found = {
            (index, uuid): _SLICED
            if mig == "Enabled"
            else Device(name, _bytes(total) - _reserved(reserved), _bytes(used))
            for index, uuid, mig, name, total, reserved, used in rows
        }
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise InstallationError(f"no GPU was found: nvidia-smi does not tell of one ({error})") from error
    if not found:
        raise InstallationError("no GPU was found: nvidia-smi does not tell of one")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = [each.strip() for each in (visible or "").split(",") if each.strip()]
    seen = (
        list(found.values())
        if visible is None
        else [
            device
            for each in wanted
            for (index, uuid), device in found.items()
            if each == index or (each.startswith("GPU-") and uuid.startswith(each))
        ]
    )
    if _SLICED in seen or any(each.startswith("MIG") for each in wanted):
        raise InstallationError(
            "a GPU is in slices here (MIG), which a run cannot use: give it whole ones (nvidia-smi -mig 0, or others "
            "in CUDA_VISIBLE_DEVICES)"
        )
    if not seen:
        raise InstallationError(f"no GPU was found: CUDA_VISIBLE_DEVICES={visible} is none of this machine's")
    return seen


def _bytes(mib: str) -> int:
    return int(mib) * 2**20


def _reserved(mib: str) -> int:
    """Where the driver does not tell of that ("[N/A]"), nothing."""
    return _bytes(mib) if mib.isdecimal() else 0


def smallest(devices: Sequence[Device]) -> Device:
    """That with the least to be had: what fits it fits the others."""
    return min(devices, key=lambda device: device.room)
