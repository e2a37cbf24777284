"""The README.md of an exported model: which run it is of, what it was trained on, and how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from launch.printable import one_line
from launch.run_records import Record, RunRecords, number
from shared.config import Config
from shared.episodes import Task

_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- primezero
- self-play
- reinforcement-learning
---
"""
_HIDDEN = {Task.DEDUCTION: "y", Task.ABDUCTION: "x", Task.INDUCTION: "p"}


def model_card(run: RunRecords, config: Config, step: int) -> str:
    """In Markdown, with the head that model hubs read. `step`: training steps behind the weights."""
    return _HEAD + "\n".join(
        [
            f"\n# {_text(run.name)}, step {step}\n",
            *_origin(run, config, step),
            "\n## Accuracy\n",
            *_accuracy(run.evaluations, step),
            "\n## Use\n",
            *_use(config),
            "\n## How it was trained\n",
            *_training(run.steps, config, step),
            "\n## License\n",
            "Not stated here, and for you to state (`license:` in the head of this file). The weights come from those "
            f"of `{_text(config.model.path.name)}`, whose license says what may be done with them.",
            "",
        ]
    )


def _origin(run: RunRecords, config: Config, step: int) -> Iterator[str]:
    environment = config.environment
    yield (
        f"Trained by primezero {version('primezero')}, self-play after Absolute Zero "
        "([arXiv 2505.03335](https://arxiv.org/abs/2505.03335)): the model proposes problems, solves them, and learns "
        f"from both. {step} of {config.run.steps} steps from `{_text(config.model.path.name)}`, in "
        f"{config.model.dtype}, seed {config.run.seed}."
    )
    yield (
        f"The problems: x·y ≡ 1 (mod p) for primes p from {environment.min_prime} to {environment.max_prime}, with "
        f"{_hidden(environment.tasks)} hidden."
        + (f" A share of {environment.held_out:g} of them was never trained on." if environment.held_out else "")
    )


def _accuracy(evaluations: Sequence[Record], step: int) -> Iterator[str]:
    known = [(int(at), record) for record in evaluations if (at := number(record, "version")) is not None]
    known = [(at, record) for at, record in known if at <= step]
    if not known:
        yield "The run had not been evaluated by then."
        return
    (first_at, first), (last_at, last) = known[0], known[-1]
    yield "Greedy decoding on the run's fixed evaluation problems, share that is solved:\n"
    yield f"| task | problems | step {first_at} | step {last_at} |"
    yield "|---|---|---|---|"
    for task in Task:
        if number(last, "tasks", task, "accuracy") is not None:
            yield _row(str(task), first, last, ("tasks", task, "accuracy"), number(last, "tasks", task, "problems"))
    yield _row("mean of tasks", first, last, ("accuracy",), None)
    if number(last, "held_out_accuracy") is not None:
        yield _row("held out, mean", first, last, ("held_out_accuracy",), None)


def _row(name: str, first: Record, last: Record, path: Sequence[str], problems: float | None) -> str:
    shares = ("" if value is None else f"{value:.3f}" for value in (number(first, *path), number(last, *path)))
    return f"| {name} | {'' if problems is None else f'{problems:.0f}'} | {' | '.join(shares)} |"


def _use(config: Config) -> Iterator[str]:
    yield "```bash"
    yield f"primezero play --model . --propose {config.environment.tasks[0]}"
    yield f"vllm serve . --served-model-name primezero --dtype {config.model.dtype}"
    yield "```\n"
    yield (
        f"Its `config.json` is as transformers {version('transformers')} writes it, with `rope_parameters`: versions "
        "below 5 do not read that, and take 10,000 for `rope_theta`.\n"
    )
    if config.model.dtype == "float32":
        yield "(`--dtype`, because vLLM by itself serves float32 weights in 16 bits, and some answers differ then.)\n"
    yield (
        "Or with `transformers`: `AutoModelForCausalLM.from_pretrained`, and the chat template of its tokenizer. A "
        f'prompt has the form of training (`environment.prompts = "{config.environment.prompts}"`), which `primezero '
        "play` shows; the answer stands in `<answer>…</answer>`. In training it was sampled at temperature "
        f"{config.sampling.temperature:g} without any penalty or cut-off, and `generation_config.json` sets none."
    )


def _training(steps: Sequence[Record], config: Config, step: int) -> Iterator[str]:
    done = [record for record in steps if (number(record, "step") or 0) <= step]
    facts: Mapping[str, Any] = {
        "episodes": f"{sum(number(record, 'episodes') or 0 for record in done):.0f}",
        "response tokens": f"{sum(number(record, 'response_tokens') or 0 for record in done):.0f}",
        "proposals a task and step": config.selfplay.proposals_per_task,
        "buffer problems a task and step": config.selfplay.buffer_problems_per_task,
        "attempts on a problem": config.selfplay.attempts,
        "learning rate": f"{config.learner.lr:g}",
        "longest response": f"{config.sampling.max_response_tokens} tokens",
    }
    yield "| | |"
    yield "|---|---|"
    for name, value in facts.items():
        yield f"| {name} | {value} |"


def _hidden(tasks: Sequence[str]) -> str:
    """What is hidden in which task: y (deduction), x (abduction) or p (induction)."""
    *others, last = (f"{_HIDDEN[Task(task)]} ({task})" for task in tasks)
    return f"{', '.join(others)} or {last}" if others else last


def _text(name: str) -> str:
    """A name that cannot end a table cell, a code span or a line."""
    return one_line(name).replace("|", "∣").replace("`", "'")
