"""The GPU and its driver, memory, processor cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from launch.doctor.findings import Finding, Status
from launch.doctor.software import Installed, installed
from launch.plan.devices import GIB, Device, device_here
from launch.plan.host_memory import CGROUP, container_limit
from shared.config import Config
from shared.disk import size
from shared.errors import InstallationError, WeightSyncError

_CUDA_TIMEOUT_S = 120
_ENOUGH_MEMORY, _LITTLE_MEMORY = 6 * GIB, 2 * GIB
_ASK_TORCH = (
    "import torch; a = torch.cuda.is_available(); "
    "print(torch.version.cuda, a, *(torch.cuda.get_device_capability() if a else ()))"
)


def check_gpu(
    of: Installed = installed,
    here: Callable[[], Device] = device_here,
    torch_says: Callable[[], str] | None = None,
) -> Iterator[Finding]:
    """GPU, its free memory, and whether torch can use it; a machine without one is a fault only under the gpu lock."""
    wanted = of("vllm") is not None
    try:
        device = here()
    except InstallationError as error:
        if wanted:
            yield Finding("GPU", Status.FAIL, "none", f"{error} Without a GPU, `bash launch/setup.sh cpu`")
        else:
            yield Finding("GPU", Status.SKIP, "none: runs are on the CPU")
        return
    if not wanted:
        yield Finding("GPU", Status.WARN, device.name, "the CPU's environment is installed: bash launch/setup.sh gpu")
        return
    yield Finding("GPU", Status.OK, f"{device.name}, {device.memory / GIB:.1f} GiB")
    if device.used > device.memory // 20:
        others = f"{device.used / GIB:.1f} GiB are taken by others"
        yield Finding(
            "GPU memory", Status.WARN, others, "end them (nvidia-smi names them), or `primezero plan` for less"
        )
    yield _driver((torch_says or _torch_says)())


def check_allocator(config: Config, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Memory in expandable segments cannot be shared by CUDA IPC, which brings weights to an engine on the same GPU."""
    from learner.weight_ipc import refuse_expandable_segments

    try:
        refuse_expandable_segments(environment.get)
    except WeightSyncError as error:
        status = Status.FAIL if config.transport == "ipc" else Status.WARN
        yield Finding("CUDA allocator", status, "expandable segments", str(error))
    else:
        yield Finding("CUDA allocator", Status.OK, "no expandable segments")


def check_memory(available: int | None = None, limits: tuple[Path, ...] = CGROUP) -> Iterator[Finding]:
    """Of the machine, or of the container where that has less."""
    free = psutil.virtual_memory().available if available is None else available
    if (limit := container_limit(limits)) is not None and limit < free:
        found, free = f"{size(limit)}, the limit of this container", limit
    else:
        found = f"{size(free)} available"
    if free < _LITTLE_MEMORY:
        yield Finding(
            "memory",
            Status.FAIL,
            found,
            "engine, learner and Ray take more, even with the tiny model: end something, or raise the limit",
        )
    elif free < _ENOUGH_MEMORY:
        yield Finding(
            "memory",
            Status.WARN,
            found,
            "the tiny model is content with 6 GiB; an offloaded optimizer takes 18 to 28 bytes a weight",
        )
    else:
        yield Finding("memory", Status.OK, found)


def check_cores() -> Iterator[Finding]:
    """Those that this process may run on."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        yield Finding("processor cores", Status.WARN, str(cores), "engine and learner take turns on one: give it two")
    else:
        yield Finding("processor cores", Status.OK, str(cores))


def _driver(said: str) -> Finding:
    cuda, available, *capability = said.split()
    if available != "True":
        advice = "the driver is older than this torch's CUDA, or the container was not given the GPU (--gpus all)"
        return Finding("driver", Status.FAIL, f"torch, for CUDA {cuda}, cannot use the GPU", advice)
    if int(capability[0]) < 8:
        found = f"compute capability {'.'.join(capability)}"
        return Finding("driver", Status.WARN, found, "bfloat16 is slow or missing below 8.0: --model.dtype float32")
    return Finding("driver", Status.OK, f"torch, for CUDA {cuda}, can use the GPU")


def _torch_says() -> str:
    """Asked in a process of its own: what it makes on the GPU goes with it."""
    command = [sys.executable, "-c", _ASK_TORCH]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=_CUDA_TIMEOUT_S, check=True
    ).stdout
