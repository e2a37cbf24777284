"""The model's tokenizer and chat template: from our prompt text to token ids, and from ids to text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shared.episodes import Int32Array
from shared.errors import ModelFolderError
from shared.model_folder import stop_tokens, vocabulary_size
from shared.pretrained import model_config, reason

PROMPTS_KEPT = 4096
_SHOWN = 60


class ChatTokenizer:
    """Encodes single-message chats and decodes responses.

    eos_token_id: the token that ends a turn
    """

    def __init__(self, tokenizer: Any, stop_ids: Collection[int] = (), name: str = "the model") -> None:
        """
        stop_ids: all tokens that end a completion (`shared.model_folder.stop_tokens`), beside the tokenizer's own
        name: what errors call the folder. Raises ModelFolderError where the chat template cannot be used.
        """
        self._tokenizer = tokenizer
        self._name = name
        self.eos_token_id: int = tokenizer.eos_token_id
        self._stop_ids = frozenset({*stop_ids, self.eos_token_id})
        self._control_texts = self._controls()
        self._encoded = lru_cache(PROMPTS_KEPT)(self._encode)

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTokenizer:
        """Load from a Hugging Face model folder, local files only; ModelFolderError if that cannot be."""
        if not folder.is_dir():
            raise ModelFolderError(f"the model folder {folder} does not exist: name another")
        try:
            tokenizer = _load(folder)
        except Exception as error:  # the library documents no closed list of what a broken folder raises
            model_config(folder)  # which it reads, too: then that is at fault
            raise ModelFolderError(
                f"cannot load a tokenizer from {folder}: {reason(error)}; put the model's own there"
            ) from error
        if not tokenizer.chat_template:
            raise ModelFolderError(f"the tokenizer in {folder} has no chat template: use an Instruct model")
        if tokenizer.eos_token_id is None:
            raise ModelFolderError(f"the tokenizer in {folder} has no eos_token, to end a turn: use an Instruct model")
        largest, vocabulary = max(tokenizer.get_vocab().values(), default=0), vocabulary_size(folder)
        if vocabulary is not None and largest >= vocabulary:
            raise ModelFolderError(
                f"the tokenizer in {folder} has token ids up to {largest}, but the model knows {vocabulary} tokens "
                "(vocab_size): put the model's own tokenizer there"
            )
        return cls(tokenizer, stop_tokens(folder), str(folder))

    @property
    def tells_the_day(self) -> bool:
        """Whether a prompt depends on the day that it is made on."""
        return "strftime_now" in str(self._tokenizer.chat_template)

    def check_shown(self, texts: Sequence[str]) -> None:
        """ModelFolderError unless the tokens of each prompt spell all of it, and those of different ones differ.

        A template that was written for other contents than text, or a tokenizer that lacks characters, drops what the
        user says in silence. White space may differ: templates strip it.
        """
        spelled = [self._tokenizer.decode(self.prompt_ids(text), skip_special_tokens=False) for text in texts]
        for text, shown in zip(texts, spelled, strict=True):
            if "".join(text.split()) not in "".join(shown.split()):
                raise ModelFolderError(
                    f"the model in {self._name} would not be shown what it is asked: of the prompt {_short(text)} its "
                    f"chat template and tokenizer make {_short(shown)}; put the model's own there, or use another "
                    "Instruct model"
                )
        if len(set(spelled)) < len(set(texts)):
            raise ModelFolderError(
                f"the chat template in {self._name} makes the same of different prompts: put the model's own there"
            )

    def prompt_ids(self, text: str) -> list[int]:
        """`prompt` as a list."""
        ids: list[int] = self.prompt(text).tolist()
        return ids

    def prompt(self, text: str) -> Int32Array:
        """One user message through the chat template, ready for the assistant's turn: int32 [tokens], read-only.

        The last PROMPTS_KEPT different ones are kept, since a problem is attempted again and again. Raises
        ModelFolderError if `text` spells a control token, which would be read as one, or the chat template fails.
        """
        return self._encoded(text)

    def _encode(self, text: str) -> Int32Array:
        for control in self._control_texts:
            if control in text:
                raise ModelFolderError(
                    f"{control!r}, which a prompt contains, is a control token of the model in {self._name}, and would "
                    "be read as one: use another model"
                )
        ids = np.asarray(self._tokenizer.encode(self._rendered(text), add_special_tokens=False), dtype=np.int32)
        ids.flags.writeable = False  # handed out many times
        return ids

    def _rendered(self, text: str) -> str:
        messages = [{"role": "user", "content": text}]
        try:
            rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program, and may fail in any way
            raise ModelFolderError(
                f"the chat template in {self._name} cannot be used: {reason(error)}; put the model's own there, or "
                "use another Instruct model"
            ) from error
        return rendered

    def _controls(self) -> tuple[str, ...]:
        """Texts of the tokens that shape a chat: those with a role in the tokenizer, in the template, or at the end.

        Other added tokens are text that may be asked for, special or not, as some models' <think> or <answer>.
        """
        tokenizer, added = self._tokenizer, self._tokenizer.added_tokens_decoder
        template = f"{tokenizer.chat_template} {self._rendered('1')}"
        special = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)}
        controls = {
            *tokenizer.special_tokens_map.values(),
            *(added[token].content for token in self._stop_ids if token in added),
            *(token for token in special if token in template),
        }
        return tuple(controls - {""})

    def response_ids(self, text: str) -> list[int]:
        """A whole assistant's turn, its end-of-turn token included."""
        return [*self._tokenizer.encode(text, add_special_tokens=False), self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of response tokens, but for the one that ended the completion."""
        if len(ids) and ids[-1] in self._stop_ids:
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


def _short(text: str) -> str:
    """At most its beginning and its end, quoted."""
    return repr(text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} … {text[-_SHOWN:]}")
