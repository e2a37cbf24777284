"""Who runs where, and what is refused, without Ray."""

from __future__ import annotations

import pytest

from launch.placement import Machine, Placement, describe, gpus_needed, place
from shared.config import Config
from shared.config_file import load_config
from shared.errors import PlacementError


def configured(kind: str, device: str = "cuda", workers: int = 1, ranks: int = 1, **overrides: object) -> Config:
    keys = {"placement.kind": kind, "placement.device": device, "rollout.workers": workers, "learner.ranks": ranks}
    keys |= {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(None, [f"--{key}={value}" for key, value in keys.items()])


def machine(name: str = "here", cores: float = 8, gpus: int = 0) -> Machine:
    return Machine(f"id of {name}", name, cores, gpus)


def where(placement: Placement) -> dict[str, str]:
    return {name: at.machine.address for name, at in placement.places.items()}


def within_bounds(placement: Placement) -> bool:
    """Whether no bundle gives more than it has, and no machine either."""
    for index, bundle in enumerate(placement.bundles):
        inside = [at for at in placement.places.values() if at.bundle == index]
        if not inside or any(at.machine != bundle.machine for at in inside):
            return False
        if sum(at.gpus for at in inside) > bundle.gpus or sum(at.cpus for at in inside) > bundle.cpus + 1e-9:
            return False
    for each in placement.machines():
        own = [bundle for bundle in placement.bundles if bundle.machine == each]
        if sum(b.gpus for b in own) > each.gpus or sum(b.cpus for b in own) > each.cores + 1e-9:
            return False
    return True


def test_colocated_engines_share_the_first_rank_s_gpu_by_the_plan_s_shares():
    shares = {"rollout__gpu_memory_share": 0.2467, "learner__gpu_memory_share": 0.5}
    placement = place(configured("colocated", workers=2, ranks=2, **shares), machine(gpus=2))
    places = placement.places
    assert [bundle.gpus for bundle in placement.bundles] == [1, 1]
    assert places["rollout-0"].bundle == places["rollout-1"].bundle == places["learner-0"].bundle
    assert places["learner-1"].bundle != places["learner-0"].bundle
    assert [places[n].gpus for n in ("rollout-0", "rollout-1", "learner-0", "learner-1")] == [0.2467, 0.2467, 0.5, 1]
    assert within_bounds(placement)


def test_split_gives_each_a_gpu_of_its_own_engines_the_first():
    placement = place(configured("split", workers=2, ranks=3), machine(gpus=5))
    assert [placement.places[f"rollout-{i}"].bundle for i in range(2)] == [0, 1]
    assert [placement.places[f"learner-{i}"].bundle for i in range(3)] == [2, 3, 4]
    assert {at.gpus for at in placement.places.values()} == {1}
    assert within_bounds(placement)


def test_over_machines_ranks_stay_together_from_here_on_and_workers_take_the_rest():
    machines = [machine("b", gpus=4), machine("c", gpus=2)]
    placement = place(configured("cluster", workers=4, ranks=3), machine(gpus=2), machines)
    at = where(placement)
    assert [at[f"learner-{i}"] for i in range(3)] == ["here", "here", "b"]
    assert [at[f"rollout-{i}"] for i in range(4)] == ["b", "c", "b", "c"]
    assert within_bounds(placement)
    assert {m.address for m in placement.machines()} == {"here", "b", "c"}


def test_a_machine_without_a_process_takes_no_part():
    placement = place(configured("cluster", workers=1, ranks=1), machine(gpus=2), [machine("b")])
    assert [each.address for each in placement.machines()] == ["here"]


def test_on_the_cpu_ranks_are_here_and_workers_where_threads_are_fewest():
    placement = place(configured("cluster", "cpu", workers=3, ranks=2), machine(cores=4), [machine("b", cores=2)])
    at = where(placement)
    assert at["learner-0"] == at["learner-1"] == "here"
    assert [at[f"rollout-{i}"] for i in range(3)] == ["b", "here", "here"]
    assert {placed.gpus for placed in placement.places.values()} == {0}
    assert within_bounds(placement)


def test_more_threads_than_cores_share_them():
    placement = place(configured("split", "cpu", workers=2, ranks=2, rollout__threads=2), machine(cores=2))
    assert within_bounds(placement)
    places = placement.places
    assert places["rollout-0"].cpus == pytest.approx(2 / 3, abs=1e-3)
    assert places["learner-0"].cpus == pytest.approx(1 / 3, abs=1e-3)
    roomy = place(configured("split", "cpu", workers=2, ranks=2, rollout__threads=2), machine(cores=6))
    assert roomy.places["rollout-0"].cpus == 2


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        (configured("colocated", ranks=2, workers=3), 2),
        (configured("split", ranks=2, workers=3), 5),
        (configured("split", "cpu", ranks=2, workers=3), 0),
    ],
)
def test_gpus_are_counted_before_there_are_any(config, needed):
    assert gpus_needed(config) == needed


@pytest.mark.parametrize(
    ("config", "here", "others", "said"),
    [
        (configured("colocated"), machine(), [], r"needs 1 GPU .*this machine has no GPUs: is the driver installed\?"),
        (configured("split"), machine(gpus=1), [], r"needs 2 GPUs .*this machine has 1 GPU: .*kind=colocated"),
        (configured("split", ranks=3), machine(gpus=2), [], r"needs 4 GPUs .*has 2 GPUs: lower learner\.ranks"),
        (
            configured("cluster", ranks=2),
            machine(gpus=1),
            [machine("b", gpus=1), machine("c")],
            r"needs 3 GPUs .*free: here 1, b 1, c 0: join more machines",
        ),
        (configured("cluster"), machine(), [machine("b", gpus=8)], r"first learner rank .* here has no free GPU"),
        (configured("split", "cpu", rollout__threads=9), machine(), [], r"rollout\.threads=9, and this machine has 8"),
        (
            configured("cluster", "cpu", learner__threads=9),
            machine(),
            [machine("b", cores=16)],
            r"learner\.threads=9, and no machine has more than 8",
        ),
        (configured("colocated", "cpu", sync__transport="ipc"), machine(), [], r"ipc cannot serve .* on cpu: use shm"),
        (configured("split", sync__transport="shm"), machine(gpus=2), [], r"shm cannot serve .* on cuda: use nccl"),
        (configured("colocated", sync__transport="nccl"), machine(gpus=1), [], r"cannot serve .*: use ipc"),
        (
            configured("split", placement__pin_cores="true"),
            machine(gpus=2),
            [],
            r"pin_cores=true is for the CPU",
        ),
        (
            configured("split", "cpu", workers=5, ranks=4, placement__pin_cores="true"),
            machine(),
            [],
            r"needs 9 cores .*this machine has 8: lower the threads",
        ),
    ],
)
def test_what_is_missing_is_said_with_what_to_change(config, here, others, said):
    with pytest.raises(PlacementError, match=said):
        place(config, here, others, cores=range(int(here.cores)))


def cores(placement: Placement) -> dict[str, tuple[int, ...]]:
    return {name: at.cores for name, at in placement.places.items()}


def test_cores_that_are_asked_for_are_each_process_s_own():
    config = configured("split", "cpu", workers=2, ranks=2, rollout__threads=2, placement__pin_cores="true")
    pinned = cores(place(config, machine(), cores=[3, 4, 5, 6, 7, 10, 11, 12]))
    assert pinned == {"rollout-0": (3, 4), "rollout-1": (5, 6), "learner-0": (7,), "learner-1": (10,)}
    free = place(configured("split", "cpu", workers=2, ranks=2), machine(), cores=range(8))
    assert set(cores(free).values()) == {()}


def test_what_is_out_of_the_ordinary_is_said():
    def said(config: Config, *machines: Machine) -> list[str]:
        return describe(config, place(config, *machines[:1], machines[1:], cores=range(2)))

    assert said(configured("colocated", "cpu"), machine(cores=2)) == []
    assert said(configured("split"), machine(gpus=2)) == []
    assert said(configured("split", "cpu", workers=2, ranks=2), machine(cores=2)) == [
        "4 threads on 2 cores: the processes share them"
    ]
    assert said(configured("colocated", "cpu", placement__pin_cores="true"), machine(cores=2)) == [
        "each process has cores of its own: rollout-0 0, learner-0 1"
    ]
    assert said(configured("cluster"), machine(gpus=1), machine("b", gpus=1)) == [
        "on b: rollout-0",
        "on here: learner-0",
    ]
