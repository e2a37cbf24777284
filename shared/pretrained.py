"""A model folder's configuration as transformers has it, without what no run uses and it may refuse to load or save.

Used wherever a model is loaded and written: a folder that loads is one that can be written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.errors import ModelFolderError
from shared.model_folder import generation_tokens


def model_config(folder: Path) -> Any:
    """Its config.json as transformers' configuration. ModelFolderError where that is refused."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library documents no closed list of what a broken folder raises
        raise ModelFolderError(
            f"{folder / 'config.json'} is refused: {reason(error)}; put the model's own there"
        ) from error
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        config.pad_token_id = None  # nothing is ever padded
    # Nobody asks for either, and with our attention the one cannot be written.
    config.output_attentions = config.output_hidden_states = False
    return config


def generation_config(folder: Path) -> Any:
    """Its generation_config.json as transformers' configuration: the tokens alone (`generation_tokens`)."""
    from transformers import GenerationConfig

    return GenerationConfig(**generation_tokens(folder))


def reason(error: Exception) -> str:
    """What a library raised, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
