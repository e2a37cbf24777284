"""What a live display knows of a run: its last records, and numbers told from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from launch.records import Record
from launch.supervisor import Restart

WINDOW = 512  # steps that the trends go back
PACE_STEPS = 20  # that the time left is told from


class RunView:
    """The last WINDOW steps and evaluations.

    steps: of the whole run; time_limit_s: of the run, if it has one
    coming_back: the unit that was started again after the last step, if any was
    """

    def __init__(self, steps: int, time_limit_s: float | None = None) -> None:
        self.steps = steps
        self.restarts: list[Restart] = []
        self.coming_back: str | None = None
        self.records: deque[Record] = deque(maxlen=WINDOW)
        self.evaluations: deque[Record] = deque(maxlen=WINDOW)
        self._time_limit_s = time_limit_s

    def restart(self, restart: Restart) -> None:
        """Note it, and forget what will come again."""
        self.restarts.append(restart)
        self.coming_back = restart.unit
        version = restart.origin.version
        if version is not None:
            self.records = _up_to(self.records, "step", version)
            self.evaluations = _up_to(self.evaluations, "version", version)

    def step(self, record: Record) -> None:
        """Note a step."""
        self.records.append(record)
        self.coming_back = None

    @property
    def version(self) -> int:
        """Steps done."""
        return self.records[-1]["step"] if self.records else 0

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, as far as they are known, in the order of the records."""
        last = [*list(self.evaluations)[-1:], *list(self.records)[-1:]]
        return list(dict.fromkeys(task for record in last for task in record["tasks"]))

    def series(self, number: Callable[[Record], Any]) -> list[float | None]:
        """A number of every step, oldest first; None where a record does not have it."""
        return [_get(record, number) for record in self.records]

    def last(self, number: Callable[[Record], Any]) -> float | None:
        """That number of the last step."""
        return _get(self.records[-1], number) if self.records else None

    def mean(self, number: Callable[[Record], Any]) -> float | None:
        """Its mean over the last few steps."""
        known = [value for value in self.series(number)[-PACE_STEPS:] if value is not None]
        return sum(known) / len(known) if known else None

    def phase_shares(self) -> dict[str, float]:
        """Where the time of the last few steps went, as shares, largest first."""
        sums: dict[str, float] = {}
        for record in list(self.records)[-PACE_STEPS:]:
            for phase, seconds in record["phases"].items():
                sums[phase] = sums.get(phase, 0.0) + seconds
        total = sum(sums.values())
        return {p: s / total for p, s in sorted(sums.items(), key=lambda item: -item[1])} if total else {}

    def step_s(self) -> float | None:
        """Seconds from one of the last few steps to the next."""
        recent = list(self.records)[-PACE_STEPS - 1 :]
        if len(recent) > 1:
            return (recent[-1]["wall_s"] - recent[0]["wall_s"]) / (len(recent) - 1)
        return self.mean(lambda record: record["wall_s"])

    def left_s(self) -> float | None:
        """Seconds that are probably left, the final evaluation not counted."""
        pace = self.step_s()
        if pace is None:
            return None
        left = pace * (self.steps - self.version)
        if self._time_limit_s is None:
            return left
        return max(0.0, min(left, self._time_limit_s - self.records[-1]["wall_s"]))

    def rollout_tokens_per_s(self) -> float | None:
        """Tokens that the engines have sampled for the last few steps, by the whole time."""
        pace, tokens = self.step_s(), self.mean(lambda r: r["response_tokens"] + r["untrained_tokens"])
        return tokens / pace if pace and tokens is not None else None

    def learner_tokens_per_s(self) -> float | None:
        """Tokens through the policy, by the time of training."""
        seconds, tokens = (
            self.mean(lambda r: r["phases"]["train_s"]),
            self.mean(lambda r: r["learner"]["forward_tokens"]),
        )
        return tokens / seconds if seconds and tokens is not None else None


def _get(record: Record, number: Callable[[Record], Any]) -> float | None:
    try:
        value = number(record)
    except (KeyError, TypeError):
        return None
    return None if value is None else float(value)


def _up_to(records: Iterable[Record], key: str, version: int) -> deque[Record]:
    return deque((record for record in records if record[key] <= version), maxlen=WINDOW)
