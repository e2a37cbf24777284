"""The tokenizer of models that are made here: small, and good at the environment's own prompts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from rollout.environment import Environment
from shared.episodes import Role

_PAD, _TURN_START, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def new_tokenizer(env: Environment, vocabulary: int, max_positions: int) -> Any:
    """Byte-level BPE over the environment's prompts: digits one by one, whole phrases merged into single tokens.

    vocabulary: at most so many tokens; max_positions: of the model that it is for
    Returns a `PreTrainedTokenizerFast` with a chat template; the same arguments give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Without the usual word-splitting regex, a phrase between two numbers can become one token.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_PAD, _TURN_START, _TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(env), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_TURN_END,
        pad_token=_PAD,
        additional_special_tokens=[_TURN_START],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=max_positions,
        padding_side="left",
        # For Qwen2 models transformers 5 puts its own word-splitting Qwen2Tokenizer in place of any other class, unless
        # the folder names custom code; without trust_remote_code it then takes the saved class. No code is named.
        auto_map={"AutoTokenizer": [None, None]},
    )


def _tokenizer_texts(env: Environment, rows: int = 300) -> Iterator[str]:
    """Demonstration chats, split at the control tokens, which training would otherwise merge across."""
    rng = random.Random("tokenizer")
    for _, task, role in itertools.product(range(rows), env.tasks, Role):
        row = env.demonstration(role, task, rng)
        yield from (f"user\n{row.prompt}", "\n", "assistant\n", row.response)
