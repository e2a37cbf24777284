"""A training run: check everything, start the processes, watch them, leave nothing behind."""

from __future__ import annotations

import contextlib
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launch.display import Display
from launch.ray_cluster import Cluster
from launch.run_folder import STOP_FILE, make_run_folder
from learner.progress import Summary
from learner.spec import LearnerSpec
from rollout.chat import ChatTokenizer
from rollout.environment import Environment, make_environment
from rollout.worker import WorkerSpec
from shared.config import Config
from shared.errors import ConfigError, PrimezeroError
from shared.model_folder import check_model_folder

PROBE_TOKENS = 64
GOODBYE_S = 30.0


def train(config: Config) -> Summary:
    """Run to the end, the time limit, or Ctrl-C (once: finish the step and leave; twice: leave at once).

    Raises PrimezeroError with what to do about it; by then every process of the run has ended.
    """
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": config.model.path.resolve()})})
    check_model_folder(config.model.path)
    environment = make_environment(config.environment)
    chat = ChatTokenizer.from_folder(config.model.path)
    probe = _probe(environment, chat, config)
    run_folder = make_run_folder(config)
    with tempfile.TemporaryDirectory(prefix="primezero-") as private:
        endpoint = f"ipc://{private}/stream"
        learner = LearnerSpec(
            endpoint=endpoint,
            run_folder=run_folder,
            environment=environment.fingerprint,
            seeds={
                task: environment.seed_problems(
                    task, config.selfplay.seed_problems_per_task, random.Random(f"seeds {config.run.seed} {task}")
                )
                for task in environment.tasks
            },
            probe=probe,
            stop_file=run_folder / STOP_FILE,
        )
        display = Display(config, run_folder)
        with _interrupts(learner.stop_file, display), Cluster(Path(private), run_folder / "logs") as cluster:
            cluster.start_learner(config, learner)
            for index in range(config.rollout.workers):
                cluster.start_rollout(config, WorkerSpec(name=f"rollout-{index}", endpoint=endpoint))
            return _watch(cluster, display)


def _watch(cluster: Cluster, display: Display) -> Summary:
    summary = None
    while summary is None:
        summary = cluster.poll(timeout_s=0.5).get("learner-0")
        display.refresh()
    # The learner has said goodbye to everyone; what stays longer is ended by the cluster.
    for _ in range(int(GOODBYE_S)):
        if not cluster.running():
            break
        cluster.poll(timeout_s=1.0)
    return summary


def _probe(environment: Environment, chat: ChatTokenizer, config: Config) -> tuple[int, ...]:
    """Prompts one after the other, as many tokens as the engine's context admits."""
    limit = min(PROBE_TOKENS, config.sampling.max_prompt_tokens)
    ids: list[int] = []
    for task in environment.tasks:
        for problem in environment.evaluation_problems(task, PROBE_TOKENS, seed=0):
            prompt = chat.prompt_ids(environment.solver_prompt(problem))
            if len(prompt) > config.sampling.max_prompt_tokens:
                raise ConfigError(
                    f"a solver prompt has {len(prompt)} tokens, more than "
                    f"sampling.max_prompt_tokens={config.sampling.max_prompt_tokens}; prompts are never cut"
                )
            if len(ids) < limit:
                ids += prompt
    return tuple(ids[:limit])


@contextlib.contextmanager
def _interrupts(stop_file: Path, display: Display) -> Iterator[None]:
    """Ctrl-C once asks the learner to stop after its step; twice, or SIGTERM, unwinds at once."""

    def on_interrupt(signum: int, _: object) -> None:
        if signum == signal.SIGTERM or stop_file.exists():
            for each in previous:  # cleaning up is not to be interrupted
                signal.signal(each, signal.SIG_IGN)
            raise PrimezeroError("interrupted: every process of the run has been ended")
        stop_file.touch()
        display.say("stopping after this step; press Ctrl-C again to stop at once")

    previous = {s: signal.signal(s, on_interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
