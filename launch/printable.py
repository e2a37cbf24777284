"""Text that others have written, made safe to show: nothing in it moves a cursor, hides, or reorders what is read."""

from __future__ import annotations

import unicodedata

# Control, format (which includes those that change the direction of writing), surrogate, private, unassigned;
# line and paragraph separators.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_CONTROL_PICTURES = 0x2400


def printable(text: str) -> str:
    """`text` with every character that a terminal or browser would obey, instead of showing, spelled out.

    Line feeds stay. ASCII controls become their pictures (ESC is ␛), what else is not seen its escape (\\u202e).
    """
    return "".join(character if character == "\n" else _shown(character) for character in text)


def one_line(text: str) -> str:
    """The same for a line: line feeds become a picture too."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
