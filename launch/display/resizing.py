"""A rich Live whose drawing stays whole when the terminal is made narrower."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType


class ResizableLive(Live):
    """Takes away all of what it drew last, though a terminal that has become narrower has wrapped its lines.

    Live goes back by as many lines as it drew; what these were wrapped into would stay, above the next drawing.

    drawn: lines and cells of what was drawn last, as its maker has noted; before anything was, none
    """

    def __init__(self, drawing: RenderableType, console: Console, *, refreshes_per_s: float) -> None:
        super().__init__(drawing, console=console, refresh_per_second=refreshes_per_s, transient=False)
        self.drawn = (0, 0)

    def refresh(self) -> None:
        with self.console:
            lines, cells = self.drawn
            wrapped = lines * ((cells - 1) // self.console.width)
            if wrapped > 0:
                self.console.control(Control(*[(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * wrapped))
            super().refresh()
