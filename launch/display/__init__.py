"""What a run shows while it runs."""

from __future__ import annotations

import sys
from typing import Protocol, Self

from launch.display.plain import PlainDisplay, summary_lines
from launch.records import Observer, Records
from launch.vitals import Vitals
from shared.config import Config

__all__ = ["Display", "open_display", "summary_lines"]


class Display(Observer, Protocol):
    """Shows a run on the screen, from where it is entered until it is left."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was found."""

    def say(self, text: str) -> None:
        """Show lines about the run as a whole."""

    def stopping(self) -> None:
        """Show that the run ends after this step. Called by a signal handler."""


def open_display(config: Config, records: Records, vitals: Vitals) -> Display:
    """As `run.display` says."""
    kind = config.run.display
    # There is no stdout where whoever started this has closed it.
    if sys.stdout is not None and (kind == "live" or (kind == "auto" and sys.stdout.isatty())):
        from launch.display.live import LiveDisplay, terminal

        console = terminal(force=kind == "live")
        if console is not None:
            return LiveDisplay(config, records, vitals, console)
    return PlainDisplay(config.run.steps, quiet=kind == "quiet")
