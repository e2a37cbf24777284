"""Where a run keeps and finds things: model folder, run folder, shared memory, temporary folder, addresses."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator

from launch.disk_space import SHARED_MEMORY, check_disk
from launch.doctor.findings import Finding, Status
from launch.model_check import TELLS_THE_DAY, check_models
from launch.plan.devices import GIB
from launch.private_folder import check_temporary_folder
from rollout.engine_vllm import check_environment
from rollout.environment import make_environment
from shared.config import Config
from shared.disk import free_bytes, size
from shared.errors import DiskError, PrimezeroError
from shared.pretrained import generation_config, model_config, reason
from shared.transport import check_address

_ENOUGH_DISK, _ENOUGH_SHARED = 2 * GIB, GIB // 2


def check_model(config: Config, *, named: bool) -> Iterator[Finding]:
    """`named`: whether the user said which run or model it is about."""
    path = config.model.path
    if not named:
        yield Finding("model folder", Status.SKIP, "none named", "name one with --model.path FOLDER, or --config FILE")
        return
    try:
        chat = check_models(make_environment(config.environment), config)
        with tempfile.TemporaryDirectory() as place:  # as the run's end writes it
            for configuration in (model_config, generation_config):
                configuration(path).save_pretrained(place)
    except PrimezeroError as error:
        yield Finding("model folder", Status.FAIL, f"{path}", str(error))
        return
    except Exception as error:  # the library documents no closed list of what it refuses to save
        advice = f"a run could not write its model: {reason(error)}; put the model's own config.json there"
        yield Finding("model folder", Status.FAIL, f"{path}", advice)
        return
    yield Finding("model folder", Status.OK, f"{path}")
    if chat.tells_the_day:
        yield Finding("chat template", Status.WARN, "it depends on the date", TELLS_THE_DAY)


def check_disks(config: Config) -> Iterator[Finding]:
    """The run folder's disk, and shared memory: for the model where there is one, else for what any run takes."""
    folder = config.run_folder
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = "it is not yours to write: choose a place with --run.folder"
        yield Finding("run folder", Status.FAIL, f"{existing}", advice)
    try:
        if config.model.path.exists():
            check_disk(config)
    except DiskError as error:
        yield Finding("disk", Status.FAIL, f"{size(free_bytes(folder))} free", str(error))
    except PrimezeroError:
        pass  # the model is not whole, which is a finding of its own
    else:
        yield _room("disk", free_bytes(folder), _ENOUGH_DISK, "a run of the tiny model takes about 100 MiB; make room")
    advice = "engine and learner share weights there: in a container, docker run --shm-size=8g"
    yield _room("shared memory", free_bytes(SHARED_MEMORY), _ENOUGH_SHARED, advice)


def check_addresses(config: Config) -> Iterator[Finding]:
    """That processes reach each other over loopback, and that stream and monitor can listen where they are to."""
    try:
        with socket.socket() as listener, socket.socket() as caller:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            caller.settimeout(5)
            caller.connect(listener.getsockname())
    except OSError as error:
        found = f"no connection over loopback ({error.strerror or error})"
        yield Finding("ports", Status.FAIL, found, "bring it up, as with `ip link set lo up`, or let 127.0.0.1 through")
        return
    check_address(config.stream.endpoint)
    host, port = config.monitor.host, config.monitor.port
    try:
        if port is not None:
            socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        found = f"nothing can listen at {host}:{port} ({error.strerror or error})"
        yield Finding("ports", Status.FAIL, found, "choose another monitor.port, or an address of this machine")
    else:
        yield Finding("ports", Status.OK, f"loopback connects, stream.endpoint is {config.stream.endpoint}")


def check_temporary_place() -> Iterator[Finding]:
    """The folder for temporary files, whose path may be too long for sockets: then that is the finding."""
    place = check_temporary_folder()
    yield Finding("temporary folder", Status.OK, f"{place}, {size(free_bytes(place))} free")


def check_variables() -> Iterator[Finding]:
    """Variables that no engine is started with: then that is the finding."""
    check_environment()
    yield Finding("environment", Status.OK, "nothing that runs refuse")


def _room(name: str, free: int, enough: int, advice: str) -> Finding:
    return Finding(
        name, Status.OK if free >= enough else Status.WARN, f"{size(free)} free", "" if free >= enough else advice
    )
