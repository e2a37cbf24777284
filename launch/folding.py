"""Lines folded between words, for a terminal's width: what is to be copied, such as a path, stays in one piece."""

from __future__ import annotations

import shutil
import textwrap
from typing import TextIO

_NARROWEST = 20


def folded(text: str, columns: int, later: str = "") -> str:
    """Each line of `text` on lines of at most `columns`, unless a word is longer.

    later: what goes before the lines that are added
    """
    return "\n".join(
        textwrap.fill(
            line,
            max(columns, _NARROWEST),
            subsequent_indent=later,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.split("\n")
    )


def for_screen(text: str, stream: TextIO, later: str = "") -> str:
    """The text folded to the terminal that `stream` is; as it is, where it is none."""
    return folded(text, shutil.get_terminal_size().columns, later) if stream.isatty() else text
