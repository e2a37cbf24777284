"""The panel of a live display while a run starts: what is waited for, and how far each process has come."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.display.panel import GAP, Phase, framed, span
from launch.printable import one_line
from launch.vitals import Sign

LONGEST_STATE = 44
LOG_TAIL_BYTES = 2**16
# As launch/processes.py has them written, of this project's own modules.
_OURS = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ INFO (?:launch|learner|rollout)\.\S+: (.*)")
# Whole warnings, and what goes on from the line before, are for the log alone.
_NOISE = re.compile(r"\s|.*\bwarning\b", re.IGNORECASE)
# What libraries put before what they say: a time, the process, a level, a place in their source.
_PREFIX = re.compile(
    r"((\d{4}-)?\d\d-\d\d [\d:,]+ |\(\w+ pid=\d+\) |(DEBUG|INFO|WARNING|ERROR) |\[[\w.]+:\d+\] |\w+(\.\w+)+: )*"
)


def start_panel(
    stages: Sequence[tuple[str, str, str]], waited_s: float, name: str, width: int, phase: Phase = "runs"
) -> Panel:
    """A run that is starting. stages: (what, its state, a detail), in order; waited_s: since the launch"""
    columns = [min(LONGEST_STATE, max(len(stage[i]) for stage in stages)) for i in range(2)]
    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_column(no_wrap=True, width=columns[0])
    room = max(1, width - 4 - GAP - columns[0])
    table.add_column(style="bold", no_wrap=True, overflow="ellipsis", width=min(room, columns[1]))
    detail = width - 4 - 2 * GAP - sum(columns)
    if detail > GAP:
        table.add_column(style="dim", no_wrap=True, overflow="ellipsis", width=detail)
    for stage in stages:
        table.add_row(*map(Text, stage[: len(table.columns)]))
    heading = {
        "runs": f"starting  {span(waited_s)}",
        "stops": f"starting  {span(waited_s)}  stopping after the first step",
        "ended": f"ended while starting, after {span(waited_s)}",
    }[phase]
    return framed(Group(Text(heading, style="bold"), "", table), name, width)


def stages(signs: Mapping[str, Sign], logs: Path) -> list[tuple[str, str, str]]:
    """What is waited for: Ray, then each process, with what it says that it does, and what its libraries say of that.

    logs: the folder of <process>.log
    """
    if not any(sign.runs for sign in signs.values()):
        return [("Ray", "starting", ""), *((name, "waits for Ray", "") for name in signs)]
    return [("Ray", "running", ""), *((name, *stage(sign, logs / f"{name}.log")) for name, sign in signs.items())]


def stage(sign: Sign, log: Path) -> tuple[str, str]:
    """What a process says that it does, and what its libraries have said since."""
    if not sign.runs:
        return "not running", ""
    if sign.beats < 0:  # what its log says is of an earlier start
        return "starting", ""
    said, library = "loading", ""
    for line in _last_lines(log):
        if ours := _OURS.match(line):
            said, library = ours[1], ""
        elif line and not _NOISE.match(line):
            library = _PREFIX.sub("", line, count=1)
    return one_line(said), one_line(library)


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            return re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    except OSError:
        return []
