"""Signs of life of a run's processes, for people and watchdogs; launch/supervisor.py decides by its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

# The launcher looks several times in a second, unless it is stopped or waits for Ray.
LAUNCHER_QUIET_S = 30.0


@dataclass(frozen=True, slots=True)
class Sign:
    """One process as last seen. beats: −1 until it has answered once; since: of its start or last beat."""

    runs: bool
    beats: int
    since: float


class Vitals:
    """What is known of each process; written by one thread, read by others.

    names: of all processes of the run; clock: seconds
    """

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = clock()
        self.signs = dict.fromkeys(names, Sign(False, -1, self._looked))
        self.resident_bytes: Mapping[str, int] = {}

    def look(self, running: Collection[str], beats: Mapping[str, int], resident_bytes: Mapping[str, int]) -> None:
        """Take in which processes run, how many signs of life each has given, and how much memory each takes."""
        now = self._clock()

        def sign(name: str, before: Sign) -> Sign:
            seen = (name in running, beats.get(name, -1))
            return before if seen == (before.runs, before.beats) else Sign(*seen, since=now)

        self.signs = {name: sign(name, before) for name, before in self.signs.items()}
        self.resident_bytes = {name: resident_bytes[name] for name in self.signs if name in resident_bytes}
        self._looked = now

    def quiet_s(self, name: str) -> float:
        """Seconds since a process was started, last gave a sign of life, or ended."""
        return self._clock() - self.signs[name].since

    def complaints(self, limit_s: float) -> list[str]:
        """What is wrong: a process that does not run, or has been quiet for `limit_s`; empty while all is well."""
        if self._clock() - self._looked > LAUNCHER_QUIET_S:
            return [f"the launcher has not looked at its processes for {self._clock() - self._looked:.0f} s"]
        found = []
        for name, sign in self.signs.items():
            if not sign.runs:
                found.append(f"{name} does not run")
            elif sign.beats < 0:
                found.append(f"{name} is starting")
            elif self.quiet_s(name) > limit_s:
                found.append(f"{name} has given no sign of life for {self.quiet_s(name):.0f} s")
        return found
