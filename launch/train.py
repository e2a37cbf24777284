"""A training run: check everything, start the processes, keep them going, leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from launch.beginnings import probe, seed_stages
from launch.disk_space import check_disk
from launch.display import open_display
from launch.interrupts import Interrupts
from launch.model_check import TELLS_THE_DAY, check_models
from launch.placement import Machine, cluster_address, gpus_needed, learner_names, place, rollout_names
from launch.plan.devices import devices_here, smallest
from launch.plan.resolve import resolve_memory
from launch.plan.table import plan_table
from launch.private_folder import check_temporary_folder, private_folder
from launch.processes import be_private, free_port
from launch.ray_cluster import Cluster
from launch.records import Guarded, Observer, Records
from launch.restart_log import RestartLog
from launch.run_folder import (
    CHECKPOINTS,
    METRICS_FILE,
    RESTARTS_FILE,
    STOP_FILE,
    RunFolder,
    open_run_folder,
    remove_what_is_left,
    with_choices_kept,
)
from launch.supervisor import LOSS_S, Origin, Restart, Supervisor, Unit
from launch.tracking.tracker import Tracking, check_tracking
from launch.vitals import Vitals
from learner.progress import Summary
from learner.spec import LearnerSpec
from rollout.engine_vllm import check_environment, check_version
from rollout.environment import Environment, make_environment
from rollout.evaluation import EVALUATION_SEED
from rollout.worker import WorkerSpec
from shared.config import Config
from shared.errors import ConfigError, PlanError
from shared.model_sizes import folder_sizes
from shared.transport import ClientKeys, check_address, make_keys

GOODBYE_S = 30.0


def train(config: Config, *, resume: bool = False) -> Summary:
    """Run to the end, the time limit, or Ctrl-C (once: finish the step and leave; twice: leave at once).

    resume: whether there has to be a run to go on with
    Raises PrimezeroError with what to do about it; by then every process of the run has ended.
    """
    be_private()
    config = _resolved(config)
    remove_what_is_left(config)
    check_version()
    check_environment()
    check_tracking(config)
    check_address(config.stream.endpoint)
    environment = make_environment(config.environment)
    check_held_out(environment, config)
    chat = check_models(environment, config)
    if chat.tells_the_day:
        _complain(TELLS_THE_DAY)
    probe_ids = probe(environment, chat, config)
    check_disk(config)
    check_placement(config)
    config = _split_gpus(with_choices_kept(config), asked=config)
    with open_run_folder(config, resume=resume) as run_folder:
        return _run(config, environment, probe_ids, run_folder)


def _resolved(config: Config) -> Config:
    """With absolute paths, which mean the same to every process, and from wherever the run is resumed; and with the
    device and the transport that this machine chooses, for all of them."""
    model = config.model.model_copy(update={"path": config.model.path.resolve()})
    reference = config.learner.reference_model
    learner = config.learner.model_copy(update={"reference_model": reference and reference.resolve()})
    sync = config.sync.model_copy(update={"transport": config.transport})
    placement = config.placement.model_copy(update={"device": config.placement.resolved_device})
    return config.model_copy(update={"model": model, "learner": learner, "sync": sync, "placement": placement})


def _split_gpus(config: Config, asked: Config) -> Config:
    """With what is left to the memory plan filled in; it is printed where there are GPUs.

    asked: the configuration before `with_choices_kept`
    """
    gpus = gpus_needed(config)
    # Where others are further away than this machine, they are taken to be as large as those here.
    device = smallest(devices_here()[:gpus]) if gpus else None
    try:
        config, plan = resolve_memory(config, device)
    except PlanError as error:
        if (kept := config.learner.offload_optimizer) == asked.learner.offload_optimizer:
            raise
        raise PlanError(
            f"{error}. The run in {config.run_folder} has begun with learner.offload_optimizer={str(kept).lower()}, "
            "and can go on with that alone"
        ) from error
    if plan is not None:
        print(plan_table(plan, folder_sizes(config.model.path), config.model.path.name) + "\n")
    return config


def check_placement(config: Config) -> None:
    """PlacementError where this machine cannot hold what is to run on it alone; a Ray cluster is asked once it is
    joined."""
    if config.placement.kind == "cluster":
        cluster_address(config)
    if config.placement.host != "auto":
        free_port(config.placement.host)
    if config.placement.kind != "cluster":
        check_temporary_folder()
        cores = os.sched_getaffinity(0)
        gpus = len(devices_here()) if gpus_needed(config) else 0
        place(config, Machine("", "this machine", len(cores), gpus), cores=cores)


def _run(config: Config, environment: Environment, probe_ids: tuple[int, ...], run_folder: RunFolder) -> Summary:
    stop_file = run_folder.path / STOP_FILE
    records = Records(run_folder.path, run_folder.version)
    vitals = Vitals([*learner_names(config), *rollout_names(config)])
    with private_folder(run_folder.path) as private, contextlib.ExitStack() as held:
        display = open_display(config, records, vitals)
        observers = [
            Guarded("the display", display, _complain),
            *held.enter_context(records_elsewhere(config, run_folder, records, vitals)),
        ]
        held.enter_context(display)
        if run_folder.resume_from is not None:
            display.say(f"resuming from {run_folder.resume_from}")
            if (there := len(records.past_steps)) < run_folder.version:
                display.say(
                    f"{METRICS_FILE} is damaged: the first {there} of the {run_folder.version} steps so far stay in it"
                )
        display.say(f"run folder {run_folder.path}")
        for line in config.doubtful:
            display.say(line)
        with (
            Interrupts(stop_file, display.stopping) as interrupts,
            Cluster(config, private.path, run_folder.path, on_use=private.note, check=interrupts.check) as cluster,
            RestartLog(run_folder.path / RESTARTS_FILE) as restarts,
        ):
            for line in cluster.described():
                display.say(line)
            endpoint = _endpoint(config, cluster.host, private.path)
            learner_keys, worker_keys = make_keys() if endpoint.startswith("tcp://") else (None, None)
            learner = LearnerSpec(
                endpoint=endpoint,
                keys=learner_keys,
                host=cluster.host,
                run_folder=run_folder.path,
                environment=environment.fingerprint,
                seeds=seed_stages(environment, config),
                probe=probe_ids,
                checkpoints=run_folder.path / CHECKPOINTS,
                resume_from=run_folder.resume_from,
                lineage=run_folder.lineage,
                stop_file=stop_file,
            )

            def tell(restart: Restart) -> None:
                interrupts.check()  # who ends all of a run's processes, as a scheduler does, has none started again
                restarts.write(restart)
                records.tell(observers)
                for observer in observers:
                    observer.restart(restart)

            def look_on() -> None:
                interrupts.check()
                vitals.look(cluster.running(), cluster.beats(), cluster.resident_bytes())
                records.tell(observers)

            supervisor = _supervisor(config, cluster, run_folder, learner, worker_keys, records, tell, display.say)
            summary = _watch(supervisor, look_on)
            records.tell(observers)
            # The learner has said goodbye to everyone; what stays longer is ended by the cluster.
            supervisor.wait_for_goodbyes(GOODBYE_S)
            return summary


@contextlib.contextmanager
def records_elsewhere(
    config: Config, run_folder: RunFolder, records: Records, vitals: Vitals
) -> Iterator[list[Observer]]:
    """Trackers and the HTTP endpoint, as configured. What goes wrong with them later is said on stderr."""
    with contextlib.ExitStack() as held:
        observers: list[Observer] = []
        if config.monitor.port is not None:
            from launch.monitor import Monitor

            monitor = held.enter_context(Monitor(config.monitor, vitals))
            monitor.catch_up(records)
            observers.append(Guarded("the monitor", monitor, _complain))
        if config.tracking.names:
            tracking = Tracking(config, run_folder.path, run_folder.version, _complain)
            held.callback(tracking.close)
            tracking.catch_up(records)
            observers.append(Guarded("tracking", tracking, _complain))
        yield observers


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _endpoint(config: Config, host: str, private: Path) -> str:
    """Where the learner's stream listens: as configured; at `host`, in a cluster; else at a socket file."""
    if config.stream.endpoint != "auto":
        return config.stream.endpoint
    if config.placement.kind == "cluster":
        return f"tcp://{f'[{host}]' if ':' in host else host}:{free_port(host)}"
    return f"ipc://{private}/stream"


def _supervisor(
    config: Config,
    cluster: Cluster,
    run_folder: RunFolder,
    spec: LearnerSpec,
    keys: ClientKeys | None,
    records: Records,
    tell: Callable[[Restart], None],
    say: Callable[[str], None],
) -> Supervisor:
    def start_learner() -> None:
        cluster.start_learner(config, spec)

    def learner_goes_on() -> Origin:
        nonlocal spec
        found = run_folder.go_on()
        spec = replace(spec, resume_from=found.resume_from, lineage=found.lineage, replaces=True)
        return Origin(found.lineage, found.version)

    def worker(name: str) -> Unit:
        def start() -> None:
            cluster.start_rollout(config, WorkerSpec(name=name, endpoint=spec.endpoint, keys=keys))

        return Unit(name, [name], start, go_on=lambda: Origin(spec.lineage))

    return Supervisor(
        cluster,
        Unit("learner", learner_names(config), start_learner, learner_goes_on),
        [worker(name) for name in rollout_names(config)],
        max_restarts=config.run.max_restarts,
        hang_timeout_s=config.run.hang_timeout_s,
        logs=run_folder.path / "logs",
        progress=lambda: records.progress,
        finished=run_folder.finished,
        on_restart=tell,
        on_loss=say,
        loss_s=LOSS_S if config.placement.kind == "cluster" else 0.0,
    )


def _watch(supervisor: Supervisor, look_on: Callable[[], None]) -> Summary:
    look_on()
    supervisor.start()
    while (summary := supervisor.watch(timeout_s=0.5)) is None:
        look_on()
    return summary


def check_held_out(environment: Environment, config: Config) -> None:
    """ConfigError where `environment.held_out` leaves nothing to evaluate generalisation on."""
    share = config.environment.held_out
    for task in environment.tasks if share else ():
        if not environment.evaluation_problems(task, 1, EVALUATION_SEED, held_out=True):
            raise ConfigError(
                f"environment.held_out={share} holds no {task} problem out: raise it, widen the range of problems, or "
                "set it to 0"
            )
