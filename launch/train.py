"""A training run: check everything, start the processes, watch them, leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launch.display import Display
from launch.ray_cluster import Cluster
from launch.run_folder import STOP_FILE, open_run_folder
from learner.progress import Summary
from learner.spec import LearnerSpec
from rollout.chat import ChatTokenizer
from rollout.environment import Environment, make_environment
from rollout.worker import WorkerSpec
from shared.config import Config
from shared.errors import ConfigError, PrimezeroError
from shared.model_folder import check_model_folder, context_length

PROBE_TOKENS = 64
LENGTH_SAMPLES = 200
GOODBYE_S = 30.0


def train(config: Config) -> Summary:
    """Run to the end, the time limit, or Ctrl-C (once: finish the step and leave; twice: leave at once).

    Raises PrimezeroError with what to do about it; by then every process of the run has ended.
    """
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": config.model.path.resolve()})})
    check_model_folder(config.model.path)
    environment = make_environment(config.environment)
    chat = ChatTokenizer.from_folder(config.model.path)
    _check_lengths(environment, chat, config)
    probe = _probe(environment, chat, config)
    with open_run_folder(config) as run_folder:
        return _run(config, environment, probe, run_folder)


def _run(config: Config, environment: Environment, probe: tuple[int, ...], run_folder: Path) -> Summary:
    # Ray's own helpers may still be leaving when the folder goes.
    with tempfile.TemporaryDirectory(prefix="primezero-", ignore_cleanup_errors=True) as private:
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
        with _interrupts(learner.stop_file), Cluster(Path(private), run_folder / "logs") as cluster:
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
    """Solver prompts one after the other, as many tokens as the engine's context admits."""
    ids = [
        token
        for task in environment.tasks
        for problem in environment.evaluation_problems(task, PROBE_TOKENS, seed=0)
        for token in chat.prompt_ids(environment.solver_prompt(problem))
    ]
    return tuple(ids[: min(PROBE_TOKENS, config.sampling.max_prompt_tokens)])


def _check_lengths(environment: Environment, chat: ChatTokenizer, config: Config) -> None:
    """Raise ConfigError where prompts, of problems drawn at random, or the whole context would not fit."""
    limit, response = config.sampling.max_prompt_tokens, config.sampling.max_response_tokens
    context = context_length(config.model.path)
    if context is not None and limit + response > context:
        raise ConfigError(
            f"sampling.max_prompt_tokens + sampling.max_response_tokens = {limit + response}, but the model in "
            f"{config.model.path} reads {context} tokens at most"
        )
    rng = random.Random("lengths")
    for task in environment.tasks:
        problems = environment.seed_problems(task, LENGTH_SAMPLES, rng)
        prompts = [environment.solver_prompt(problem) for problem in problems]
        for _ in range(LENGTH_SAMPLES):
            shown = rng.sample(problems, min(config.selfplay.references, len(problems)))
            prompts.append(environment.proposer_prompt(task, shown))
        longest = max(len(chat.prompt_ids(prompt)) for prompt in prompts)
        if longest > limit:
            raise ConfigError(
                f"sampling.max_prompt_tokens={limit} is too small: a {task} prompt has {longest} tokens, and prompts "
                "are never cut"
            )


@contextlib.contextmanager
def _interrupts(stop_file: Path) -> Iterator[None]:
    """Ctrl-C once asks the learner to stop after its step; twice, or SIGTERM, unwinds at once."""
    signals = (signal.SIGINT, signal.SIGTERM)
    interrupts = 0

    def on_signal(signum: int, _: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if signum == signal.SIGTERM or interrupts > 1:
            for each in signals:  # cleaning up is not to be interrupted
                signal.signal(each, signal.SIG_IGN)
            raise PrimezeroError("interrupted: every process of the run has been ended")
        stop_file.touch()
        # print() may be what was interrupted, and cannot be entered twice.
        os.write(1, b"stopping after this step; press Ctrl-C again to stop at once\n")

    previous = {each: signal.signal(each, on_signal) for each in signals}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
