"""The answer block: how integers are read from model text."""

from __future__ import annotations

import re

_TAG = re.compile(r"(</?answer>)")
_INTEGER = re.compile(r"-?[0-9]{1,12}")
_WHITESPACE = " \t\r\n\f\v"


def answer_block(content: str) -> str:
    """`content` in the format that parse_answer reads."""
    return f"<answer>{content}</answer>"


def parse_answer(text: str, count: int, *, must_end_there: bool) -> tuple[int, ...] | None:
    """The `count` integers of the last complete answer block in `text`; None if it holds anything else.

    A block is `<answer>…</answer>` without another answer tag inside. Its stripped content must be
    comma-separated ASCII integers of at most 12 digits. must_end_there: only white space may follow it.
    """
    parts = _TAG.split(text)
    for end in range(len(parts) - 2, 2, -2):
        if parts[end] == "</answer>" and parts[end - 2] == "<answer>":
            if must_end_there and "".join(parts[end + 1 :]).strip(_WHITESPACE):
                return None
            words = [word.strip(_WHITESPACE) for word in parts[end - 1].split(",", count)]
            if len(words) == count and all(map(_INTEGER.fullmatch, words)):
                return tuple(map(int, words))
            return None
    return None
