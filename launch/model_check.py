"""Whether a model folder can do what is wanted of it: the one check that `train`, `eval`, `play` and `doctor` make.

It reads the folder alone: no library that a model is run with is loaded.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from pathlib import Path

from launch.lengths import check_context, check_prompts
from rollout.chat import ChatTokenizer
from rollout.engine_vllm import check_head_width
from rollout.environment import Environment, make_environment
from shared.config import Config
from shared.model_folder import check_model_folder, check_weights

LENGTH_SAMPLES = 200
TELLS_THE_DAY = (
    "the chat template tells the model the date: prompts, and so accuracies, are those of the day, and a run that goes "
    "over midnight mixes them"
)


def checked_chat(
    folder: Path, environment: Environment, config: Config, named_by: str = "--model.path"
) -> ChatTokenizer:
    """The model's tokenizer, once it is known that the model is one that engine and learner take, reads as much as is
    configured, and is shown what the environment asks.

    Raises ModelFolderError or ConfigError. named_by: what the user named the folder with
    """
    check_model_folder(folder, named_by)
    check_head_width(folder, config.placement.resolved_device)
    check_context(folder, config.sampling)
    chat = ChatTokenizer.from_folder(folder)
    rng = random.Random("shown")
    for task in environment.tasks:
        problems = environment.seed_problems(task, 2, rng, batch=environment.stages[-1])
        proposed = environment.proposer_prompt(task, problems[:1], batch=environment.stages[-1])
        chat.check_shown([*map(environment.solver_prompt, problems), proposed])
    return chat


def check_models(environment: Environment, config: Config) -> ChatTokenizer:
    """The tokenizer of a run's model, once its folder, the reference model's and the environment's prompts have passed.

    Raises ModelFolderError or ConfigError, saying what to do.
    """
    chat = checked_chat(config.model.path, environment, config)
    if config.learner.kl_coefficient > 0 and config.learner.reference_model is not None:
        check_weights(config.learner.reference_model, "--learner.reference_model")
    check_lengths(environment, chat, config)
    return chat


def check_lengths(environment: Environment, chat: ChatTokenizer, config: Config) -> None:
    """Raise ConfigError where prompts, of problems drawn at random, would not fit."""
    for what, tokens in _prompt_lengths(environment, chat, config):
        check_prompts(what, tokens, config.sampling)


def with_prompt_room(config: Config, tokens: int = 0) -> Config:
    """With `sampling.max_prompt_tokens` as the prompts of its model need it, and room for those that were not drawn.

    tokens: to be used instead, where it is not 0. Raises ModelFolderError or ConfigError as `checked_chat`.
    """
    check_model_folder(config.model.path, "--model")
    check_head_width(config.model.path, config.placement.resolved_device)
    if not tokens:
        chat = ChatTokenizer.from_folder(config.model.path)
        lengths = _prompt_lengths(make_environment(config.environment), chat, config)
        tokens = max(max(each, default=0) for _, each in lengths) * 9 // 8 + 8
    sampling = config.sampling.model_copy(update={"max_prompt_tokens": tokens})
    check_context(config.model.path, sampling)
    return config.model_copy(update={"sampling": sampling})


def _prompt_lengths(
    environment: Environment, chat: ChatTokenizer, config: Config
) -> Iterator[tuple[str, Collection[int]]]:
    """Of each kind of prompt, in each stage, what it is and how many tokens some have."""
    rng = random.Random("lengths")
    for batch in environment.stages:
        for task in environment.tasks:
            problems = environment.seed_problems(task, LENGTH_SAMPLES, rng, batch=batch)
            asked = {problem.key: len(chat.prompt_ids(environment.solver_prompt(problem))) for problem in problems}
            yield f"{task}: a solver's prompt", asked.values()
            if not config.selfplay.proposals_per_task:
                continue
            longest = sorted(problems, key=lambda problem: asked[problem.key], reverse=True)
            count = min(config.selfplay.references, len(problems))
            shown = [longest[:count], *(rng.sample(problems, count) for _ in range(LENGTH_SAMPLES))]
            proposed = (environment.proposer_prompt(task, references, batch=batch) for references in shown)
            yield f"{task}: a proposer's prompt", [len(chat.prompt_ids(prompt)) for prompt in proposed]
