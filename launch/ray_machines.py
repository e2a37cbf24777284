"""The machines of a run: what of them Ray reserves for it, and what its processes hold on each."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from launch import ray_instance
from launch.actors import MachineKeeper
from launch.installation import differences, installation
from launch.local_processes import KILLED_S, LEAVE_S, LocalProcesses
from launch.placement import Machine, Placement, cluster_address, describe, gpus_needed, learner_names, place
from launch.plan.devices import GIB, devices_here, smallest
from launch.private_folder import RECORD_FILE
from launch.ray_instance import (
    GetTimeoutError,
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
    RayError,
    RayTaskError,
    placement_group,
    ray,
)
from shared.config import Config
from shared.errors import PlacementError, PrimezeroError

# For Ray to start a keeper, or to reserve what is free.
RESERVE_S = 60.0
CLOSE_S = 2 * LEAVE_S + 10.0
START_ATTEMPTS = 3
LOOK_S = 2.0
LOOPBACK = "127.0.0.1"


class Machines:
    """One machine with a Ray instance of the run's own or, under placement.kind=cluster, those of a Ray cluster.

    What the run holds on each other machine is kept there by a `MachineKeeper`.

    folder: private, on this machine; run_folder: has logs/
    on_use: told which shared memory the processes have been seen to use on this machine
    check: called between the steps of `open`, to raise what ends it
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        run_folder: Path,
        on_use: Callable[[Collection[Path]], None],
        check: Callable[[], None],
    ) -> None:
        self._config = config
        self._folder = folder
        self._run_folder = run_folder
        self._check = check
        self._local = LocalProcesses(folder, on_use)
        self._here: Machine | None = None
        self._placement = Placement((), {})
        self._group: Any = None
        # By the machine's id: who keeps it, the private folder there, and what has been asked of it and not answered.
        self._keepers: dict[str, Any] = {}
        self._folders: dict[str, Path] = {}
        self._noting: dict[str, Any] = {}
        self._memory: dict[str, int] = {}
        self._gone: set[str] = set()
        self._looked_at = 0.0

    def open(self) -> None:
        """Start or join Ray, and reserve everybody's place. PlacementError where that cannot be."""
        if self._config.placement.kind == "cluster":
            ray_instance.join(cluster_address(self._config))
        else:
            self._start_ray()
        self._check()
        self._here, others = ray_instance.machines()
        placement = place(self._config, self._here, others, cores=os.sched_getaffinity(0))
        for machine in placement.machines():
            if machine is not self._here:
                self._keep(machine)
                self._check()
        self._check_others(placement)
        self._check()
        self._reserve(placement)

    def close(self, shut_down: Callable[[], None]) -> None:
        """End all that the run has on any machine; `shut_down` has Ray let go of it."""

        def leave() -> None:
            closing = [keeper.close.remote() for keeper in self._keepers.values()]
            with contextlib.suppress(RayError, PrimezeroError):  # then its reaper does it
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S) if closing else None
            shut_down()

        self._local.end_all(leave)
        ray_instance.forget()

    @property
    def host(self) -> str:
        """The address of this machine at which the first learner rank listens."""
        if self._config.placement.host != "auto":
            return self._config.placement.host
        assert self._here is not None
        return self._here.address if self._config.placement.kind == "cluster" else LOOPBACK

    def described(self) -> list[str]:
        """The placement, in lines for the screen."""
        return describe(self._config, self._placement)

    def folder(self, name: str) -> Path:
        """The private folder of this start on the machine of the process of this name: its mark begins with it."""
        return self._folders.get(self._placement.places[name].machine.id, self._folder)

    def cores(self, name: str) -> tuple[int, ...]:
        """That the process is to keep to; none: to no ones."""
        return self._placement.places[name].cores

    def options(self, name: str) -> dict[str, Any]:
        """Of the actor of this name, for Ray."""
        at = self._placement.places[name]
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=at.bundle)
        return {"num_cpus": at.cpus, "num_gpus": at.gpus, "scheduling_strategy": strategy}

    def note(self) -> None:
        """Have it remembered what the run's processes are and use, since the dead cannot be asked."""
        self._local.note()
        self._memory |= self._local.resident_bytes()
        for id, keeper in self._keepers.items():
            if id in self._noting:
                if not ray.wait([self._noting[id]], timeout=0)[0]:
                    continue
                with contextlib.suppress(RayError):  # the machine is gone: `poll` tells of those that were there
                    self._memory |= ray.get(self._noting[id], timeout=RESERVE_S)
            self._noting[id] = keeper.note.remote()

    def resident_bytes(self) -> dict[str, int]:
        """Memory of the processes of each name, as last noted."""
        return self._memory

    def lost(self) -> dict[str, str]:
        """Addresses of machines that Ray has given up, by the names of the processes that have their place there.

        For good: one that comes back is another to Ray. Asked of it every LOOK_S.
        """
        if self._keepers and time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            with contextlib.suppress(RayError):
                self._gone |= {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        places = self._placement.places.items() if self._gone else ()
        return {name: at.machine.address for name, at in places if at.machine.id in self._gone}

    def end(self, names: Collection[str]) -> None:
        """End what is left of these processes. Raises PrimezeroError when one cannot be killed, or is not known to have
        ended."""
        left = self._local.end(names)
        for machine in {self._placement.places[name].machine for name in names}:
            if (keeper := self._keepers.get(machine.id)) is None:
                continue
            try:
                left += ray.get(keeper.end.remote(names), timeout=2 * (LEAVE_S + KILLED_S))
            except GetTimeoutError as error:
                raise PrimezeroError(
                    f"machine {machine.address} does not answer, and {' and '.join(names)} may still run there, so "
                    "none is started in its place: is that machine, or Ray on it, stopped? Given again, the same "
                    "command goes on from the last checkpoint"
                ) from error
            except RayError:  # the machine is gone, and with it all that was there
                continue
        if left:
            raise PrimezeroError(
                f"a process of {' and '.join(names)} cannot be killed (pid {', '.join(map(str, left))}), so none is "
                "started in its place: is a device or a file system stuck?"
            )

    def _start_ray(self) -> None:
        cpus, gpus = len(os.sched_getaffinity(0)), gpus_needed(self._config)
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                return ray_instance.start_own(self._folder, mark=self._local.mark("ray"), cpus=cpus, gpus=gpus)
            except Exception as error:
                self._check()
                self.close(ray.shutdown)
                # Ray gives its own processes 30 s, which a busy machine may exceed.
                if attempt == START_ATTEMPTS:
                    raise PrimezeroError(
                        f"Ray did not start in {attempt} attempts: {error} It keeps its sockets in {self._folder}: is "
                        "that path short (TMPDIR), is there room, is the machine very busy?"
                    ) from error
        raise AssertionError("unreachable")

    def _keep(self, machine: Machine) -> None:
        options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(machine.id, soft=False)}
        keeper = ray.remote(MachineKeeper).options(**options).remote(self._run_folder, machine.address)
        self._ask(machine, keeper.stay_no_longer_than_ray.remote())
        self._folders[machine.id] = self._ask(machine, keeper.folder.remote())
        self._keepers[machine.id] = keeper

    def _ask(self, machine: Machine, answer: Any) -> Any:
        """What its keeper answers. PlacementError where it cannot, or does not."""
        try:
            return ray.get(answer, timeout=RESERVE_S)
        except (RayError, ImportError) as error:
            why = error.cause if isinstance(error, RayTaskError) else error  # else it begins with a page of traceback
            raise PlacementError(
                f"machine {machine.address} cannot take part: {why}. It needs this very installation at the same path, "
                f"and a place of this user's own at {self._run_folder}"
            ) from error

    def _check_others(self, placement: Placement) -> None:
        """That every other machine has this software, the model, and as much room on its GPUs as the plan takes there
        to be; one with learner ranks also this very run folder, since they write their parts of checkpoints there."""
        model, record = self._config.model.path / "config.json", self._run_folder / RECORD_FILE
        with_ranks = {placement.places[name].machine.id for name in learner_names(self._config)}
        with_gpus = self._config.placement.resolved_device == "cuda"
        here = installation()
        for machine in placement.machines():
            keeper = self._keepers.get(machine.id)
            if keeper is None:
                continue
            if different := differences(here, self._ask(machine, keeper.installation.remote())):
                raise PlacementError(
                    f"machine {machine.address} has other software than this one: {', '.join(different)}. Bring this "
                    "very checkout there, to the same path, and set it up again with launch/setup.sh"
                )
            if self._ask(machine, keeper.read.remote(model)) != model.read_bytes():
                raise PlacementError(
                    f"machine {machine.address} does not have this model at {self._config.model.path}: every machine "
                    "needs a copy there"
                )
            if machine.id in with_ranks and self._ask(machine, keeper.read.remote(record)) != record.read_bytes():
                raise PlacementError(
                    f"learner ranks on {machine.address} would write their parts of a checkpoint where this machine "
                    "does not find them: put the run on a file system that both share (--run.folder), or lower "
                    "learner.ranks to the GPUs of this machine"
                )
            if not with_gpus:
                continue
            count = sum(bundle.gpus for bundle in placement.bundles if bundle.machine.id == machine.id)
            there = self._ask(machine, keeper.gpu_room.remote(count))
            planned = smallest(devices_here()[: gpus_needed(self._config)]).room
            if there < planned:
                raise PlacementError(
                    f"machine {machine.address} has a GPU of which {there / GIB:.1f} GiB can be had, less than the "
                    f"{planned / GIB:.1f} here, which the memory plan is made for: end what takes the rest (nvidia-smi "
                    "names it), or give the command on that machine"
                )

    def _reserve(self, placement: Placement) -> None:
        bundles = [{"CPU": bundle.cpus} | ({"GPU": bundle.gpus} if bundle.gpus else {}) for bundle in placement.bundles]
        where = [{"ray.io/node-id": bundle.machine.id} for bundle in placement.bundles]
        self._group = placement_group(bundles, strategy="PACK", bundle_label_selector=where)
        try:
            ray.get(self._group.ready(), timeout=RESERVE_S)
        except GetTimeoutError as error:
            raise PlacementError(
                f"Ray does not reserve what was free a moment ago ({bundles}): has another run taken it? Try again"
            ) from error
        self._placement = placement
