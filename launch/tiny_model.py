"""Makes the tiny model: a CPU stand-in for an Instruct model, taught only the format.

A Qwen2 of some 0.15 million parameters with its own tokenizer, small enough that self-play runs on one
CPU thread. What it is taught comes from `environment.demonstration` alone.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launch.model_writing import make_readable, without_progress_bars
from launch.tiny_tokenizer import new_tokenizer
from rollout.chat import ChatTokenizer
from rollout.environment import Environment, make_environment
from rollout.evaluation import Attempt, task_accuracy
from shared.config import EnvironmentConfig
from shared.disk import reason
from shared.episodes import Evaluation, Role, Task, TaskAccuracy
from shared.errors import ConfigError, ModelFolderError

Progress = Callable[[int, float], None]

_README = (
    "A tiny model that stands in for an Instruct model on the CPU: random initial weights, then a short "
    "supervised warm start on the answer format. Made by primezero; of no use for anything else.\n"
)
_IGNORED = -100  # PyTorch's label for tokens without loss
_MAY_BE_0 = ("steps", "warmup")


@dataclass(frozen=True, kw_only=True)
class TinyModelSettings:
    """Sizes of the model and the recipe of its warm start.

    vocabulary: upper bound; the tokenizer stops earlier when every phrase is one token
    init_std: of the random weights. At the library's 0.02 a model this narrow starts nearly linear and learns about
        four times slower
    warmup: steps of linear warm-up; then the learning rate falls linearly to `final_lr_share` of its peak
    proposer_share: share of the warm start's rows that are proposals
    """

    vocabulary: int = 1024
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    intermediate: int = 256
    max_positions: int = 512
    steps: int = 400
    init_std: float = 0.08
    batch: int = 96
    lr: float = 3e-3
    warmup: int = 30
    final_lr_share: float = 0.1
    gradient_clip: float = 1.0
    proposer_share: float = 0.35
    max_response_tokens: int = 12

    def __post_init__(self) -> None:
        """ConfigError, naming it as an option, for what no model can be made of."""
        for field in fields(self):
            value = getattr(self, field.name)
            fewest = 0 if field.name in _MAY_BE_0 else 1
            if isinstance(field.default, int):
                _check(value >= fewest, field.name, value, f"it has to be at least {fewest}")
            elif field.name.endswith("share"):
                _check(0 <= value <= 1, field.name, value, "it has to be from 0 to 1")
            else:
                _check(0 < value < math.inf, field.name, value, "it has to be more than 0")
        even = self.hidden % (2 * self.heads) == 0
        _check(even, "hidden", self.hidden, f"it has to be an even number for each of the heads (--heads {self.heads})")
        _check(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"--heads {self.heads} is no multiple of it")


@dataclass(frozen=True, kw_only=True)
class WarmStartReport:
    """What came out: the loss is the last step's, nats per response token; evaluation is greedy."""

    vocabulary: int
    parameters: int
    seconds: float
    loss: float
    evaluation: Evaluation


def make_tiny_model(
    folder: Path,
    environment: EnvironmentConfig,
    *,
    settings: TinyModelSettings,
    seed: int,
    progress: Progress | None = None,
) -> WarmStartReport:
    """Make the model and its tokenizer in the new folder `folder`; the same seed gives the same bytes.

    Written beside and renamed into place. `progress` is called with (steps done, loss) at each step.
    Raises ModelFolderError when `folder` exists already, or cannot be written.
    """
    if os.path.lexists(folder):
        raise ModelFolderError(f"{folder} exists already: remove it, or name another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            report = _make(unfinished, make_environment(environment), environment, settings, seed, progress)
            make_readable(unfinished)
            os.rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ModelFolderError(f"cannot write the model to {folder}: {reason(error)}; name another folder") from error
    return report


def _check(holds: bool, name: str, value: object, why_not: str) -> None:
    if not holds:
        raise ConfigError(f"--{name.replace('_', '-')} {value}: {why_not}")


def greedy_accuracy(folder: Path, environment: EnvironmentConfig, *, max_response_tokens: int = 12) -> Evaluation:
    """Greedy decoding of the model in `folder` on the environment's evaluation set of seed 0, by task."""
    from transformers import AutoModelForCausalLM

    chat = ChatTokenizer.from_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    env, count = make_environment(environment), environment.evaluation_problems_per_task
    return Evaluation(
        0, {task: _task_accuracy(model, chat, env, task, count, max_response_tokens) for task in env.tasks}
    )


def _make(
    folder: Path,
    env: Environment,
    config: EnvironmentConfig,
    settings: TinyModelSettings,
    seed: int,
    progress: Progress | None,
) -> WarmStartReport:
    (folder / "README.md").write_text(_README, encoding="utf-8")
    tokenizer = new_tokenizer(env, settings.vocabulary, settings.max_positions)
    tokenizer.save_pretrained(folder)
    with _reproducible(seed), without_progress_bars():
        model = _new_model(tokenizer, settings)
        # The library chooses the tokenizer's class by the model's configuration: load it as it will be loaded.
        model.config.save_pretrained(folder)
        chat = ChatTokenizer.from_folder(folder)
        started = time.monotonic()
        loss = _warm_start(model, chat, env, settings, random.Random(seed), progress)
        seconds = time.monotonic() - started
        model.save_pretrained(folder)
        evaluation = greedy_accuracy(folder, config, max_response_tokens=settings.max_response_tokens)
    return WarmStartReport(
        vocabulary=model.config.vocab_size,
        parameters=model.num_parameters(),
        seconds=seconds,
        loss=loss,
        evaluation=evaluation,
    )


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread and a seeded global generator, both put back afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _new_model(tokenizer: Any, settings: TinyModelSettings) -> Any:
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        intermediate_size=settings.intermediate,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
        initializer_range=settings.init_std,
        **ends,
    )
    model = Qwen2ForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(**ends)
    return model


def _warm_start(
    model: Any,
    chat: ChatTokenizer,
    env: Environment,
    settings: TinyModelSettings,
    rng: random.Random,
    progress: Progress | None,
) -> float:
    """Supervised steps on demonstrations, loss on response tokens only; the last step's loss."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_share(step, settings))
    model.train()
    loss = float("nan")
    for step in range(settings.steps):
        ids_BT, labels_BT = _batch(chat, env, settings, rng, model.config.pad_token_id)
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss_ = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=_IGNORED
        )
        optimizer.zero_grad()
        loss_.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        optimizer.step()
        schedule.step()
        loss = loss_.item()
        if progress is not None:
            progress(step + 1, loss)
    model.eval()
    return loss


def _lr_share(step: int, settings: TinyModelSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 1 - (1 - settings.final_lr_share) * min(done, 1.0)


def _batch(
    chat: ChatTokenizer, env: Environment, settings: TinyModelSettings, rng: random.Random, pad: int
) -> tuple[Any, Any]:
    """Token ids and labels, int64 [rows, tokens], padded on the right, where causal attention hides the padding."""
    import torch

    ids, labels = [], []
    for _ in range(settings.batch):
        role = Role.PROPOSER if rng.random() < settings.proposer_share else Role.SOLVER
        row = env.demonstration(role, rng.choice(env.tasks), rng)
        prompt, response = chat.prompt_ids(row.prompt), chat.response_ids(row.response)
        fits = len(prompt) + len(response) <= (most := settings.max_positions)
        _check(fits, "max_positions", most, f"a demonstration has {len(prompt) + len(response)} tokens")
        ids.append(torch.tensor(prompt + response))
        labels.append(torch.tensor([_IGNORED] * len(prompt) + response))
    pad_rows = torch.nn.utils.rnn.pad_sequence
    return pad_rows(ids, batch_first=True, padding_value=pad), pad_rows(
        labels, batch_first=True, padding_value=_IGNORED
    )


def _task_accuracy(
    model: Any, chat: ChatTokenizer, env: Environment, task: Task, count: int, max_response_tokens: int
) -> TaskAccuracy:
    problems = env.evaluation_problems(task, count, seed=0)
    attempts: list[Attempt] = []
    for start in range(0, len(problems), 128):
        chunk = problems[start : start + 128]
        responses = _generate(model, chat, [env.solver_prompt(problem) for problem in chunk], max_response_tokens)
        attempts += [
            Attempt(env.grade(problem, chat.decode(ids)), len(ids), truncated=ids[-1] != chat.eos_token_id)
            for problem, ids in zip(chunk, responses, strict=True)
        ]
    return task_accuracy(attempts)


def _generate(model: Any, chat: ChatTokenizer, prompts: list[str], max_response_tokens: int) -> list[list[int]]:
    """Greedy responses, each up to and with its end-of-turn token."""
    import torch

    pad = model.config.pad_token_id
    rows = [chat.prompt_ids(prompt) for prompt in prompts]
    width = max(map(len, rows))
    ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        output_BT = model.generate(
            ids_BT, attention_mask=mask_BT, do_sample=False, max_new_tokens=max_response_tokens, pad_token_id=pad
        )
    responses = output_BT[:, width:].tolist()
    return [_until(ids, chat.eos_token_id) for ids in responses]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
