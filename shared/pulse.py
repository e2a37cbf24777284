"""A process's signs of life, for whoever looks on from outside."""

from __future__ import annotations


class Pulse:
    """A count that only what does the process's work moves on, never a thread that merely looks at the clock.

    A count, not a time: clocks of two machines cannot be compared, nor those of a process that was stopped.
    """

    def __init__(self) -> None:
        self.beats = 0

    def beat(self) -> None:
        """Say that the work goes on."""
        self.beats += 1
