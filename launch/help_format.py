"""How `--help` is laid out, for the width of the terminal."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from itertools import groupby

from launch.folding import folded

LARGEST_WIDTH = 100
_MARGIN = 2
_COMMAND = "  primezero "
_CONTINUED = " \\"
_HELD = "\0"  # a space that is no place to fold


class HelpFormatter(argparse.HelpFormatter):
    """Folds a description's paragraphs; keeps what is indented, and continues example commands as a shell does."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, LARGEST_WIDTH)
        super().__init__(prog, max_help_position=26, width=columns - _MARGIN)

    def add_argument(self, action: argparse.Action) -> None:
        """argparse measures the names of subcommands, but not that they are indented."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.strip("\n").split("\n")
        parts: list[str] = []
        for stays, group in groupby(lines, key=lambda line: not line or line[0].isspace()):
            block = list(group)
            parts += [_continued(line, width) for line in block] if stays else [folded(" ".join(block), width)]
        return textwrap.indent("\n".join(parts), indent)


def _continued(line: str, width: int) -> str:
    """A command, where it is too long, on several lines: an option stays with its value."""
    if not line.startswith(_COMMAND):
        return line
    held = re.sub(r"(--\S+) (?!-)", rf"\1{_HELD}", line)
    return folded(held, width - len(_CONTINUED), later=3 * "  ").replace("\n", _CONTINUED + "\n").replace(_HELD, " ")
