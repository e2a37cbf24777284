"""One panel that is kept up to date in place, on a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.panel import Panel
from rich.text import Text

from launch.display.panel import Phase, run_panel
from launch.display.plain import restart_line
from launch.display.resizing import ResizableLive
from launch.display.run_view import RunView
from launch.display.starting import stage, stages, start_panel
from launch.folding import folded
from launch.records import Record, Records
from launch.run_folder import STOP_FILE
from launch.supervisor import Restart
from launch.vitals import Vitals
from shared.config import Config

REFRESHES_PER_S = 2
LARGEST_WIDTH = 200
# The terminal echoes Ctrl-C as ^C where the cursor is, at the end of the panel: it must not begin a new line there.
ECHO_WIDTH = 3
QUIET_S = 60.0  # without a sign of life, until a process is mentioned
MOST_LEFT_OUT = 8  # of the panel, where the terminal is too low for it


def terminal(*, force: bool) -> Console | None:
    """The terminal that stdout is, if a panel can be drawn there. force: take stdout for one"""
    console = Console(force_terminal=True if force else None, highlight=False, markup=False, emoji=False)
    has_blocks = console.encoding.startswith("utf")
    return console if console.is_terminal and has_blocks and not console.is_dumb_terminal else None


class LiveDisplay:
    """Draws on a thread of its own, REFRESHES_PER_S times in a second; what goes wrong there is shown, not raised."""

    def __init__(self, config: Config, records: Records, vitals: Vitals, console: Console) -> None:
        self._name = f"primezero {config.run.name}"
        self._logs = config.run_folder / "logs"
        self._stop_file = config.run_folder / STOP_FILE
        self._vitals = vitals
        self._view = RunView(config.run.steps, config.run.time_limit_s)
        self._view.records.extend(records.past_steps)
        self._view.evaluations.extend(records.past_evaluations)
        # Of this launch: what is drawn tells a start from a run that goes on.
        self._heard = self._ended = False
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._console = console
        self._live = ResizableLive(self, console, refreshes_per_s=REFRESHES_PER_S)

    def __enter__(self) -> Self:
        self._live.start()
        # Never hidden, it need not be brought back, not even by a launcher that is killed.
        self._console.show_cursor(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._live.stop()

    def say(self, text: str) -> None:
        """Print lines above the panel, folded between words: a path or a command stays whole, to be copied."""
        self._console.print(Text(folded(text.rstrip("\n"), self._console.width)), soft_wrap=True)

    def stopping(self) -> None:
        """Nothing more: the file that stops a run is seen with the next drawing."""

    def step(self, record: Record) -> None:
        with self._lock:
            self._heard = True
            self._view.step(record)

    def evaluation(self, record: Record) -> None:
        with self._lock:
            self._heard = True
            self._view.evaluations.append(record)

    def restart(self, restart: Restart) -> None:
        with self._lock:
            self._view.restart(restart)
        self.say(restart_line(restart))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        try:
            with self._lock:
                panel = self._drawn(console, options.update(height=None))
        except Exception as error:
            yield Text(f"{self._name}: the panel cannot be drawn: {error!r}")
        else:
            yield panel

    def _drawn(self, console: Console, options: ConsoleOptions) -> Panel:
        """As much of the panel as the terminal has lines for."""
        width = min(options.max_width - ECHO_WIDTH, LARGEST_WIDTH)
        panels = self._panels(width)
        panel = next(panels)
        while (lines := len(console.render_lines(panel, options))) > console.height and not self._ended:
            if (smaller := next(panels, None)) is None:
                break
            panel = smaller
        self._live.drawn = (min(lines, console.height), width)
        return panel

    def _panels(self, width: int) -> Iterator[Panel]:
        """The panel, and then with less and less in it."""
        if not self._heard:
            waited_s = time.monotonic() - self._started
            yield start_panel(stages(self._vitals.signs, self._logs), waited_s, self._name, width, self._phase)
            return
        troubles = self._troubles()
        for left_out in range(MOST_LEFT_OUT + 1):
            yield run_panel(
                self._view,
                self._name,
                width,
                memory=self._vitals.resident_bytes,
                troubles=troubles,
                phase=self._phase,
                left_out=left_out,
            )

    def _troubles(self) -> list[str]:
        """What is wrong with processes, and how far those have come that were started again."""
        coming_back = [
            f"{name} {stage(sign, self._logs / f'{name}.log')[0]}"
            for name, sign in self._vitals.signs.items()
            if self._view.coming_back in (name, name.rpartition("-")[0]) and sign.runs and sign.beats >= 0
        ]
        return [*self._vitals.complaints(QUIET_S), *coming_back]

    @property
    def _phase(self) -> Phase:
        if self._ended:
            return "ended"
        return "stops" if self._stop_file.exists() else "runs"
