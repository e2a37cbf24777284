"""Whether prompts and context fit, checked before an engine starts: nothing is ever cut."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shared.config import SamplingConfig
from shared.errors import ConfigError
from shared.model_folder import context_length


def check_context(model: Path, sampling: SamplingConfig) -> None:
    """ConfigError where the longest prompt and response together exceed what the model reads."""
    context = context_length(model)
    needed = sampling.max_prompt_tokens + sampling.max_response_tokens
    if context is not None and needed > context:
        raise ConfigError(
            f"sampling.max_prompt_tokens + sampling.max_response_tokens = {needed}, but the model in {model} reads "
            f"{context} tokens at most: lower them, as with --sampling.max_prompt_tokens {context // 2} "
            f"--sampling.max_response_tokens {context - context // 2}, or name a --config in which they are"
        )


def check_prompts(what: str, tokens: Iterable[int], sampling: SamplingConfig) -> None:
    """ConfigError where a prompt is too long; tokens: of each; `what` says what each is: "a solver's prompt"."""
    limit = sampling.max_prompt_tokens
    longest = max(tokens, default=0)
    if longest > limit:
        raise ConfigError(
            f"sampling.max_prompt_tokens={limit} is too small: {what} has {longest} tokens, and prompts are never cut"
        )
