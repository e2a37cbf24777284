"""The devices that a plan can be made for, and the one that is here."""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass

from shared.errors import ConfigError, InstallationError

GIB = 2**30
# What the driver reports of each as total, GiB, the smaller variant where there are two: less than its name says.
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
    """A GPU. memory: bytes that can be had of it in all; used: what others have of it already."""

    name: str
    memory: int
    used: int = 0


DEVICES = {name: Device(name, int(gib * GIB)) for name, gib in _USABLE_GIB.items()}


def named_device(name: str) -> Device:
    """ConfigError for one that is not in the table."""
    if name not in DEVICES:
        raise ConfigError(f"--device {name} is none of {', '.join(DEVICES)}: give --device-gib N instead")
    return DEVICES[name]


def device_here() -> Device:
    """The first GPU of this machine, as its driver tells; InstallationError where it tells of none.

    Asked of nvidia-smi, since asking CUDA would make a context in this process, which takes memory as long as it lives.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise InstallationError("no GPU was found: there is no nvidia-smi on this machine. Is the driver installed?")
    query = "--query-gpu=name,memory.total,memory.used"
    try:
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_QUERY_TIMEOUT_S,
            check=True,
        )
        name, total, used = next(csv.reader(answer.stdout.splitlines(), skipinitialspace=True))
        return Device(name, int(total) * 2**20, int(used) * 2**20)
    except (subprocess.SubprocessError, OSError, StopIteration, ValueError) as error:
        raise InstallationError(f"no GPU was found: nvidia-smi does not tell of one ({error})") from error
