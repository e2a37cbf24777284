"""What a run begins with, made from its environment: seed problems, and the probe that both sides score."""

from __future__ import annotations

import random

from learner.spec import SeedStage
from rollout.chat import ChatTokenizer
from rollout.environment import Environment
from shared.config import Config
from shared.episodes import Problem, Task

PROBE_TOKENS = 64


def probe(environment: Environment, chat: ChatTokenizer, config: Config) -> tuple[int, ...]:
    """What both sides score after a sync: solver prompts one after the other, as far as the engine's context admits."""
    ids = [
        token
        for task in environment.tasks
        for problem in environment.evaluation_problems(task, PROBE_TOKENS, seed=0)
        for token in chat.prompt_ids(environment.solver_prompt(problem))
    ]
    return tuple(ids[: min(PROBE_TOKENS, config.sampling.max_prompt_tokens)])


def seed_stages(environment: Environment, config: Config) -> tuple[SeedStage, ...]:
    """Seed problems of every stage of the environment, from the run's seed."""

    def problems(task: Task, batch: int) -> list[Problem]:
        rng = random.Random(f"seeds {config.run.seed} {task}" + (f" {batch}" if batch else ""))
        return environment.seed_problems(task, config.selfplay.seed_problems_per_task, rng, batch=batch)

    return tuple(
        SeedStage(batch, {task: problems(task, batch) for task in environment.tasks}) for batch in environment.stages
    )
