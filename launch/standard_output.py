"""What a command prints to: a reader that may leave, a terminal that may lack characters."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def show_what_can_be_shown() -> None:
    """From here on a character that the output's encoding lacks is spelled out."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def console() -> Console:
    """rich's, to which a reader that has gone is what it is to `print`."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # by itself rich would end the process, with 1

    return Output(highlight=False)


def reader_has_gone() -> bool:
    """Whether nobody reads any more what this process prints: a reader such as `head` has seen enough."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))  # asked for nothing, it says only that the other end is closed


def write_no_more() -> None:
    """What is still printed goes nowhere, and neither does what has been but not written."""
    if sys.stdout is not None:  # closed by whoever started this; its number may be another file's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
