"""Which process of a run is on which machine, with how much of it: decided, and refused, before anything starts.

Plain data; launch/ray_machines.py has Ray reserve it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shared.config import Config
from shared.errors import PlacementError

# Ray counts in ten-thousandths.
_UNIT = 10_000


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, and what is free of it. id: Ray's name for it; address: at which others reach it"""

    id: str
    address: str
    cores: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is reserved as one on a machine: one whole GPU, or none."""

    machine: Machine
    cpus: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Place:
    """One process's part of a bundle.

    cpus, gpus: what it takes of the bundle; cores: that it keeps to, if any
    """

    machine: Machine
    bundle: int
    cpus: float
    gpus: float
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """places: by the process's name"""

    bundles: tuple[Bundle, ...]
    places: Mapping[str, Place]

    def machines(self) -> list[Machine]:
        """Those that have a process."""
        return list({bundle.machine.id: bundle.machine for bundle in self.bundles}.values())


@dataclass(slots=True)
class _Group:
    """Processes that share a bundle. shares: of its GPU, by name; threads: by name"""

    shares: dict[str, float]
    threads: dict[str, int]
    machine: Machine | None = None


@dataclass(slots=True)
class _Load:
    """What has been given away of a machine."""

    machine: Machine
    threads: int = 0
    gpus: int = 0

    @property
    def free_gpus(self) -> int:
        return self.machine.gpus - self.gpus

    def threads_a_core(self, more: int) -> float:
        return (self.threads + more) / self.machine.cores

    def take(self, group: _Group, gpus: int) -> None:
        group.machine = self.machine
        self.threads += sum(group.threads.values())
        self.gpus += gpus


def rollout_names(config: Config) -> list[str]:
    """The rollout workers' processes."""
    return [f"rollout-{index}" for index in range(config.rollout.workers)]


def learner_names(config: Config) -> list[str]:
    """The learner ranks' processes, in the order of their ranks."""
    return [f"learner-{rank}" for rank in range(config.learner.ranks)]


def cluster_address(config: Config) -> str:
    """Where the Ray cluster of placement.kind=cluster is. PlacementError where that is not said."""
    if config.placement.ray_address is None:
        raise PlacementError(
            "placement.kind=cluster needs --placement.ray_address host:port: `bash launch/cluster.sh head` starts a "
            "Ray cluster, and says which"
        )
    return config.placement.ray_address


def gpus_needed(config: Config) -> int:
    """GPUs that the placement takes, on all machines together."""
    if config.placement.resolved_device == "cpu":
        return 0
    ranks = config.learner.ranks
    return ranks if config.placement.kind == "colocated" else ranks + config.rollout.workers


def place(config: Config, here: Machine, others: Sequence[Machine] = (), *, cores: Iterable[int] = ()) -> Placement:
    """Every process in its place. Rank 0 is `here`, where the run's folder is, and the other ranks as far as GPUs go;
    workers are where most is free.

    On the CPU, where threads are more than cores, processes share those cores.

    cores: of this machine, by number
    Raises PlacementError, with what is missing and what to change.
    """
    _check_transport(config)
    gpus = 1 if config.placement.resolved_device == "cuda" else 0
    ranks, workers = _groups(config)
    loads = [_Load(machine) for machine in (here, *others)]
    _check_gpus(config, loads)
    _check_threads(config, loads)
    for group in ranks:
        # In the order of the machines, so that ranks are together; the first of them is here.
        able = [load for load in loads if load.free_gpus >= gpus]
        (able[0] if gpus else loads[0]).take(group, gpus)
    for group in workers:
        threads = sum(group.threads.values())
        able = [load for load in loads if load.free_gpus >= gpus and load.machine.cores >= threads]
        if not able:
            raise PlacementError(
                f"rollout.threads={config.rollout.threads} is more than the free cores of every machine with a free GPU"
            )
        best = max(able, key=lambda load: (load.free_gpus if gpus else 0, -load.threads_a_core(threads)))
        best.take(group, gpus)
    return _pinned(config, _reserve([*workers, *ranks], gpus, {load.machine.id: load for load in loads}), cores)


def describe(config: Config, placement: Placement) -> list[str]:
    """What of it is worth a line on the screen."""
    lines, machines = [], placement.machines()
    for machine in machines:
        own = {name: at for name, at in placement.places.items() if at.machine == machine}
        if len(machines) > 1:
            lines.append(f"on {machine.address}: {', '.join(sorted(own))}")
        threads = sum(
            config.rollout.threads if name in rollout_names(config) else config.learner.threads for name in own
        )
        if threads > machine.cores:
            lines.append(f"{threads} threads on {machine.cores:g} cores: the processes share them")
        if pinned := [f"{name} {_listed(at.cores)}" for name, at in own.items() if at.cores]:
            lines.append(f"each process has cores of its own: {', '.join(pinned)}")
    return lines


def _listed(cores: Iterable[int]) -> str:
    return "+".join(map(str, cores))


def _groups(config: Config) -> tuple[list[_Group], list[_Group]]:
    """Of ranks, the first with who shares its GPU; and of workers."""
    rollout, learner = config.rollout, config.learner
    workers = [_Group({name: 1.0}, {name: rollout.threads}) for name in rollout_names(config)]
    ranks = [_Group({name: 1.0}, {name: learner.threads}) for name in learner_names(config)]
    if config.placement.resolved_device == "cuda" and config.placement.kind == "colocated":
        engines = rollout.gpu_memory_share or 1 / (1 + len(workers))
        shares = dict.fromkeys(rollout_names(config), engines)
        shares["learner-0"] = learner.gpu_memory_share or 1 / (1 + len(workers))
        threads = dict.fromkeys(rollout_names(config), rollout.threads) | {"learner-0": learner.threads}
        return [_Group(shares, threads), *ranks[1:]], []
    return ranks, workers


def _reserve(groups: Sequence[_Group], gpus: int, loads: Mapping[str, _Load]) -> Placement:
    bundles, places = [], {}
    for index, group in enumerate(groups):
        assert group.machine is not None
        load = loads[group.machine.id]
        scale = min(1.0, load.machine.cores / load.threads)
        # Down, so that a machine has room for all of it.
        cpus = {name: max(1, int(threads * scale * _UNIT)) / _UNIT for name, threads in group.threads.items()}
        bundles.append(Bundle(group.machine, round(sum(cpus.values()), 4), gpus))
        for name, share in group.shares.items():
            places[name] = Place(group.machine, index, cpus[name], gpus * int(share * _UNIT) / _UNIT)
    return Placement(tuple(bundles), places)


def _pinned(config: Config, placement: Placement, cores: Iterable[int]) -> Placement:
    """With cores of its own for each process, where that is asked for."""
    if not config.placement.pin_cores:
        return placement
    if config.placement.kind == "cluster" or config.placement.resolved_device == "cuda":
        raise PlacementError("placement.pin_cores=true is for the CPU of one machine: set it to false")
    counts = dict.fromkeys(rollout_names(config), config.rollout.threads)
    counts |= dict.fromkeys(learner_names(config), config.learner.threads)
    left = sorted(cores)
    if sum(counts.values()) > len(left):
        raise PlacementError(
            f"placement.pin_cores=true needs {sum(counts.values())} cores ({len(counts)} processes with rollout.threads"
            f"={config.rollout.threads} and learner.threads={config.learner.threads}), and this machine has {len(left)}"
            ": lower the threads, or set it to false"
        )
    places = {}
    for name, count in counts.items():
        places[name] = replace(placement.places[name], cores=tuple(left[:count]))
        left = left[count:]
    return replace(placement, places=places)


def _check_transport(config: Config) -> None:
    kind, device, transport = config.placement.kind, config.placement.resolved_device, config.transport
    able = {"cpu": ("shm", "nccl"), "cuda": ("ipc",) if kind == "colocated" else ("nccl",)}[device]
    if transport not in able:
        raise PlacementError(
            f"sync.transport={transport} cannot serve placement.kind={kind} on {device}: use {' or '.join(able)}, or "
            "auto"
        )


def _check_gpus(config: Config, loads: Sequence[_Load]) -> None:
    needed, found = gpus_needed(config), sum(load.machine.gpus for load in loads)
    kind = config.placement.kind
    if needed > found:
        each = "one for each rank" if kind == "colocated" else "one for each worker and each rank"
        raise PlacementError(
            f"placement.kind={kind} needs {_count(needed)} ({each}: rollout.workers={config.rollout.workers}, "
            f"learner.ranks={config.learner.ranks}), and {_free_gpus(config, loads)}: {_remedy(config)}"
        )
    if needed and not loads[0].machine.gpus:
        raise PlacementError(
            f"the first learner rank has to be on the machine that the command is given on, and "
            f"{loads[0].machine.address} has no free GPU ({_free_gpus(config, loads)}): give it on one that has"
        )


def _free_gpus(config: Config, loads: Sequence[_Load]) -> str:
    if config.placement.kind != "cluster":
        return f"this machine has {_count(loads[0].machine.gpus)}"
    listed = ", ".join(f"{load.machine.address} {load.machine.gpus}" for load in loads)
    return f"of the cluster's machines these are free: {listed}"


def _remedy(config: Config) -> str:
    if config.placement.kind == "cluster":
        return "join more machines to the cluster, or lower learner.ranks or rollout.workers"
    if config.learner.ranks > 1 or config.rollout.workers > 1:
        return "lower learner.ranks or rollout.workers"
    if config.placement.kind == "split":
        return "with one GPU use placement.kind=colocated"
    return "is the driver installed? (placement.device=cpu needs none)"


def _check_threads(config: Config, loads: Sequence[_Load]) -> None:
    most = max(load.machine.cores for load in loads)
    where = "no machine has more than" if len(loads) > 1 else "this machine has"
    for key, threads, cores in (
        ("rollout.threads", config.rollout.threads, most),
        ("learner.threads", config.learner.threads, loads[0].machine.cores),
    ):
        if threads > cores:
            raise PlacementError(f"{key}={threads}, and {where} {cores:g} free cores: lower it")


def _count(gpus: int) -> str:
    return f"{gpus or 'no'} GPU{'' if gpus == 1 else 's'}"
