"""The model's tokenizer and chat template: from our prompt text to token ids, and from ids to text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shared.episodes import Int32Array
from shared.errors import ModelFolderError
from shared.model_folder import vocabulary_size

PROMPTS_KEPT = 4096


class ChatTokenizer:
    """Encodes single-message chats and decodes responses.

    eos_token_id: the token that ends a turn
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # An added token that is not special, as some models' <think>, is text that we may ask for.
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control_texts = tuple({*tokenizer.all_special_tokens, *added})
        self._control_ids = frozenset(tokenizer.all_special_ids)
        self.eos_token_id: int = tokenizer.eos_token_id
        self._encoded = lru_cache(PROMPTS_KEPT)(self._encode)

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTokenizer:
        """Load from a Hugging Face model folder, local files only; ModelFolderError if that cannot be."""
        if not folder.is_dir():
            raise ModelFolderError(f"the model folder {folder} does not exist: name another")
        try:
            tokenizer = _load(folder)
        except Exception as error:  # the library documents no closed list of what a broken folder raises
            reason = " ".join(str(error).split())
            raise ModelFolderError(f"cannot load a tokenizer from {folder}: {reason}; download it again") from error
        if not tokenizer.chat_template:
            raise ModelFolderError(f"the tokenizer in {folder} has no chat template: use an Instruct model")
        if tokenizer.eos_token_id is None:
            raise ModelFolderError(f"the tokenizer in {folder} has no eos_token, to end a turn: use an Instruct model")
        largest, vocabulary = max(tokenizer.get_vocab().values()), vocabulary_size(folder)
        if vocabulary is not None and largest >= vocabulary:
            raise ModelFolderError(
                f"the tokenizer in {folder} has token ids up to {largest}, but the model knows {vocabulary} tokens "
                "(vocab_size): put the model's own tokenizer there"
            )
        chat = cls(tokenizer)
        try:
            chat.prompt_ids("1")
        except Exception as error:  # a template is a program, and may fail in any way
            raise ModelFolderError(
                f"the chat template in {folder} cannot be used: {error}; put the model's own there"
            ) from error
        return chat

    def prompt_ids(self, text: str) -> list[int]:
        """`prompt` as a list."""
        ids: list[int] = self.prompt(text).tolist()
        return ids

    def prompt(self, text: str) -> Int32Array:
        """One user message through the chat template, ready for the assistant's turn: int32 [tokens], read-only.

        The last PROMPTS_KEPT different ones are kept, since a problem is attempted again and again. Raises ValueError
        if `text` spells a control token: it would be read as one.
        """
        return self._encoded(text)

    def _encode(self, text: str) -> Int32Array:
        for control in self._control_texts:
            if control in text:
                raise ValueError(f"a prompt must not contain the control token {control!r}")
        messages = [{"role": "user", "content": text}]
        rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = np.asarray(self._tokenizer.encode(rendered, add_special_tokens=False), dtype=np.int32)
        ids.flags.writeable = False  # handed out many times
        return ids

    def response_ids(self, text: str) -> list[int]:
        """A whole assistant's turn, its end-of-turn token included."""
        return [*self._tokenizer.encode(text, add_special_tokens=False), self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of response tokens; of control tokens, only one that ends the turn is left out."""
        if len(ids) and ids[-1] in self._control_ids:
            ids = ids[:-1]
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def _load(folder: Path) -> Any:
    """tokenizer.json as it stands; where there is none, what the library makes of older formats."""
    options = {"local_files_only": True, "trust_remote_code": False}
    if (folder / "tokenizer.json").is_file():
        # AutoTokenizer would import PyTorch, seconds at the start of every command, and, for some kinds of model, build
        # the tokenizer anew as it takes it to be.
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder, **options)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **options)
