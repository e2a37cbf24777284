"""Which processes have given no sign of life for too long, though they have not ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

# A launcher that was stopped itself, or had much to do, has heard nothing meanwhile: that tells nothing of the others.
LONGEST_LOOK_S = 5.0


class Liveness:
    """Watches counts of signs of life: one that stays the same for `limit_s` belongs to a process that hangs.

    clock: seconds; what passes between two looks counts up to LONGEST_LOOK_S
    """

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._looked = clock()
        self._beats: dict[str, int] = {}
        self._still_s: dict[str, float] = {}

    def hanging(self, beats: Mapping[str, int]) -> list[str]:
        """Names of those that hang. Who is not among `beats` is not at work, and is forgotten."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, LONGEST_LOOK_S), now
        self._still_s = {
            name: self._still_s[name] + passed if self._beats.get(name) == count else 0.0
            for name, count in beats.items()
        }
        self._beats = dict(beats)
        return [name for name, still_s in self._still_s.items() if still_s >= self.limit_s]

    def forget(self, names: Collection[str]) -> None:
        """These are ended: what next bears their name is another."""
        for name in names:
            self._beats.pop(name, None)
