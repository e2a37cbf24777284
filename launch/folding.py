"""Lines folded between words, for a terminal's width: what is to be copied, such as a path, stays in one piece."""

from __future__ import annotations

import textwrap

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
