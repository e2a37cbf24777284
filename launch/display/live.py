"""One panel that is kept up to date in place, on a terminal."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from launch.display.panel import run_panel, start_panel
from launch.display.plain import restart_line
from launch.display.run_view import RunView
from launch.records import Record, Records
from launch.supervisor import Restart
from launch.vitals import Vitals
from shared.config import Config

REFRESHES_PER_S = 2
LARGEST_WIDTH = 200
# The terminal echoes Ctrl-C as ^C where the cursor is, at the end of the panel: it must not begin a new line there.
ECHO_WIDTH = 3
QUIET_S = 60.0  # without a sign of life, until a process is mentioned
LOG_TAIL_BYTES = 4096
LOG_CHARACTERS = 200
_TIME = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ "


def terminal(*, force: bool) -> Console | None:
    """The terminal that stdout is, if a panel can be drawn there. force: take stdout for one"""
    console = Console(force_terminal=True if force else None, highlight=False, markup=False, emoji=False)
    return console if console.is_terminal and not console.is_dumb_terminal else None


class LiveDisplay:
    """Draws on a thread of its own, REFRESHES_PER_S times in a second; what goes wrong there is shown, not raised."""

    def __init__(self, config: Config, records: Records, vitals: Vitals, console: Console) -> None:
        self._name = f"primezero {config.run.name}"
        self._logs = config.run_folder / "logs"
        self._vitals = vitals
        self._view = RunView(config.run.steps, config.run.time_limit_s)
        self._view.records.extend(records.past_steps)
        self._view.evaluations.extend(records.past_evaluations)
        # Of this launch: what is drawn tells a start from a run that goes on.
        self._heard = self._stopping = False
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._console = console
        self._live = Live(self, console=console, refresh_per_second=REFRESHES_PER_S, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        # Never hidden, it need not be brought back, not even by a launcher that is killed.
        self._console.show_cursor(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print lines above the panel."""
        self._console.print(Text(text.rstrip("\n")), soft_wrap=True)

    def stopping(self) -> None:
        self._stopping = True

    def step(self, record: Record) -> None:
        with self._lock:
            self._heard = True
            self._view.records.append(record)

    def evaluation(self, record: Record) -> None:
        with self._lock:
            self._heard = True
            self._view.evaluations.append(record)

    def restart(self, restart: Restart) -> None:
        with self._lock:
            self._view.restart(restart)
        self.say(restart_line(restart))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width - ECHO_WIDTH, LARGEST_WIDTH)
        try:
            with self._lock:
                if self._heard:
                    troubles = self._vitals.complaints(QUIET_S)
                    yield run_panel(self._view, self._name, width, troubles, stopping=self._stopping)
                else:
                    waited_s = time.monotonic() - self._started
                    yield start_panel(self._stages(), waited_s, self._name, width, stopping=self._stopping)
        except Exception as error:
            yield Text(f"{self._name}: the panel cannot be drawn: {error!r}")

    def _stages(self) -> list[tuple[str, str, str]]:
        """What is waited for: Ray, then each process, with the last that it has logged."""
        signs = self._vitals.signs
        if not any(sign.runs for sign in signs.values()):
            return [("Ray", "starting", ""), *((name, "waiting for Ray", "") for name in signs)]

        def state(name: str) -> str:
            if not signs[name].runs:
                return "not running"
            return "starting" if signs[name].beats < 0 else "loading"

        return [
            ("Ray", "running", ""),
            *((name, state(name), _last_line(self._logs / f"{name}.log")) for name in signs),
        ]


def _last_line(log: Path) -> str:
    """The last line that a process has logged, if any, without what would move the cursor."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    except OSError:
        return ""
    last = re.sub(_TIME, "", next((line for line in reversed(lines) if line.strip()), ""))
    return "".join(character for character in last if character.isprintable())[:LOG_CHARACTERS]
