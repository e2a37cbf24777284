"""Which of a run's processes are started again when they end, when, and when the run is given up.

Nothing here knows how a process is started or watched: see launch/ray_cluster.py and launch/train.py.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.liveness import Liveness
from learner.progress import Summary
from shared.errors import EngineError, PrimezeroError, SentAwayError, StreamTimeoutError, WeightSyncError, described

WINDOW_S = 600.0
LONGEST_BACKOFF_S = 30.0
# When one learner rank dies, another's failure to reach it may be heard of first; where a machine is lost, long before
# Ray, which has to be sure, says so.
VERDICT_S = 5.0
LOSS_S = 60.0
# A worker is sent home a moment before the learner returns its summary.
LEAVE_S = 10.0
REASON_CHARACTERS = 300
# Of the errors meant for a user, those that another start of a rollout worker may well not meet again.
_PASSING = (EngineError, WeightSyncError, StreamTimeoutError, SentAwayError)


class ProcessDied(Exception):
    """A process ended without a word: killed, crashed, out of memory. known: what others know of it"""

    def __init__(self, known: str = "") -> None:
        super().__init__(known)
        self._known = known

    def reason(self, name: str) -> str:
        """In one line, of the process of this name."""
        return f"the process of {name} died" + (f" ({self._known})" if self._known else "")


class ProcessHangs(ProcessDied):
    """A process that lives and does not work: stopped, stuck, in an endless loop. It is as good as dead."""

    def __init__(self, limit_s: float) -> None:
        super().__init__()
        self._limit_s = limit_s

    def reason(self, name: str) -> str:
        return f"{name} hangs: no sign of life for {self._limit_s:g} s (run.hang_timeout_s)"


@dataclass(frozen=True, slots=True)
class Ended:
    """How one process ended: with an error, or else with a result, which rank 0 of the learner alone has."""

    name: str
    result: Summary | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a unit goes on from: the run's lineage and, of the learner, the weight version."""

    lineage: int
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """One start-again, as it is told and recorded.

    number: the how-maniest of the unit within the last ten minutes, or since it last made progress if that is longer
        ago; of at most `limit`
    delay_s: until it starts
    """

    unit: str
    reason: str
    number: int
    limit: int
    delay_s: float
    origin: Origin


class Processes(Protocol):
    """The processes as a supervisor sees them."""

    def poll(self, timeout_s: float) -> Sequence[Ended]:
        """What has ended since the last call, waiting for it at most `timeout_s`."""

    def end(self, names: Collection[str]) -> None:
        """End these with all that they have started, and be sure of it; those that have ended already, too."""

    def running(self) -> set[str]:
        """Names of the processes still at work."""

    def lost(self) -> Mapping[str, str]:
        """The addresses of machines that are gone, by the names of the processes that have their place there."""

    def beats(self) -> Mapping[str, int]:
        """How many signs of life each process at work has given, as far as is known without waiting."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """at: by the supervisor's clock; progress: of the unit until then"""

    at: float
    progress: int


@dataclass(slots=True)
class Unit:
    """Processes that are started, and started again, as one.

    processes: their names
    start: starts them all; go_on: called once they are gone, says what the next `start` will go on from
    lost: its machine is gone, and it is started no more
    """

    name: str
    processes: Sequence[str]
    start: Callable[[], None]
    go_on: Callable[[], Origin]
    failures: list[_Failure] = field(default_factory=list)
    due: float | None = None
    lost: bool = False


@dataclass(slots=True)
class _Doubt:
    """An ending whose cause may still turn up; at `until` it is judged by what is known."""

    until: float
    unit: Unit
    judge: Callable[[], None]


class Supervisor:
    """Starts the units of a run, and again what should not have ended, until there is a summary.

    A process that gives no sign of life for `hang_timeout_s` is ended, and counts as dead. A worker whose machine is
    lost is started no more, and the run goes on with the others; it ends where that was the last one, or a learner
    rank's.

    A rollout worker is started again after its death, a passing error (of the engine, a weight sync, the stream; given
    up by the learner) or an unexpected one; the learner, all ranks as one, after a rank's death. At once the first
    time, then after 1, 2, 4 … 30 s; beyond `max_restarts` the run is given up. A restart counts for ten minutes, and
    until the unit has made progress: what takes ten minutes to fail, as a process that hangs does, would else be tried
    for ever. Any other error ends the run at once.
    """

    def __init__(
        self,
        processes: Processes,
        learner: Unit,
        workers: Sequence[Unit],
        *,
        max_restarts: int,
        hang_timeout_s: float,
        logs: Path,
        progress: Callable[[], Mapping[str, int]],
        finished: Callable[[], Summary | None],
        on_restart: Callable[[Restart], None],
        on_loss: Callable[[str], None] = lambda _: None,
        loss_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        progress: by the name of the unit a count of what it has got done, which the same work done again does not raise
        finished: the summary on record if the run is complete: a learner may die between that and returning it
        on_loss: is told, in words, that a machine is lost
        loss_s: how long after a failure that is its cause a machine may turn out to be lost; 0 where there is but one
        """
        self._processes = processes
        self._learner = learner
        self._units = [learner, *workers]
        self._max_restarts = max_restarts
        self._logs = logs
        self._progress = progress
        self._finished = finished
        self._on_restart = on_restart
        self._on_loss = on_loss
        self._loss_s = loss_s
        self._clock = clock
        self._liveness = Liveness(hang_timeout_s, clock)
        self._doubts: list[_Doubt] = []
        self._goodbyes_said = True
        self.summary: Summary | None = None

    def start(self) -> None:
        """Start every unit."""
        for unit in self._units:
            unit.start()

    def watch(self, timeout_s: float) -> Summary | None:
        """One round, of at most about `timeout_s`: start what is due, and see to what has ended.

        The summary, once there is one. Raises the error that ends the run: a PrimezeroError.
        """
        if self.summary is None:
            self._see_to_losses()
        now = self._clock()
        for unit in self._units:
            if unit.due is not None and unit.due <= now:
                unit.due = None
                unit.start()
        times = [unit.due for unit in self._units if unit.due is not None] + [doubt.until for doubt in self._doubts]
        for ended in sorted(self._processes.poll(max(0.0, min([timeout_s, *(t - now for t in times)]))), key=_order):
            if self.summary is None:
                self._see_to(ended)
        self._judge()
        for name in self._liveness.hanging(self._processes.beats()):
            if self.summary is None:
                self._see_to(Ended(name, error=ProcessHangs(self._liveness.limit_s)))
                self._judge()
        return self.summary

    def _judge(self) -> None:
        """Of the doubts, those whose time has come."""
        while self.summary is None and (due := [doubt for doubt in self._doubts if doubt.until <= self._clock()]):
            self._doubts.remove(due[0])
            due[0].judge()

    def wait_for_goodbyes(self, timeout_s: float) -> None:
        """After the summary: let the processes that the learner has sent home leave. How they do no longer matters."""
        deadline = self._clock() + timeout_s
        while self._goodbyes_said and self._processes.running() and (left := deadline - self._clock()) > 0:
            self._processes.poll(min(left, 1.0))

    def _see_to_losses(self) -> None:
        gone = self._processes.lost()
        for unit in self._units:
            machines = sorted({gone[name] for name in unit.processes if name in gone})
            if not machines or unit.lost:
                continue
            names = " and ".join(name for name in unit.processes if name in gone)
            lost = f"machine {' and '.join(machines)} is lost, and with it {names}"
            unit.lost = True
            if unit is self._learner or all(each.lost for each in self._units if each is not self._learner):
                raise PrimezeroError(
                    f"{lost}, without which the run cannot go on: join that machine to the cluster again, or give the "
                    "run fewer learner.ranks or rollout.workers, or others. The same command goes on from the last "
                    "checkpoint"
                )
            unit.due = None
            self._set_aside(unit)
            self._on_loss(
                f"{lost}: the run goes on with the others; joined again, it takes part from the next start on"
            )

    def _see_to(self, ended: Ended) -> None:
        unit = next(unit for unit in self._units if ended.name in unit.processes)
        if unit.due is not None or unit.lost:
            return  # another rank's death was seen first, or that of its machine
        if unit is self._learner:
            self._see_to_learner(ended)
        elif ended.error is None:
            left = f"{ended.name} left before the end of the run"
            self._doubts.append(_Doubt(self._clock() + LEAVE_S, unit, lambda: self._recover(unit, ended.name, left)))
        elif isinstance(ended.error, PrimezeroError) and not isinstance(ended.error, _PASSING):
            raise ended.error
        else:
            self._recover(unit, ended.name, self._reason(ended))

    def _see_to_learner(self, ended: Ended) -> None:
        if ended.error is None:
            self.summary = self.summary or ended.result
        elif isinstance(ended.error, ProcessDied):
            self._recover(self._learner, ended.name, self._reason(ended))
        else:
            until = self._clock()
            if not self._processes.running().isdisjoint(self._learner.processes):
                until += VERDICT_S if isinstance(ended.error, PrimezeroError) else max(VERDICT_S, self._loss_s)
            self._doubts.append(_Doubt(until, self._learner, lambda: self._give_up_for(ended)))

    def _give_up_for(self, ended: Ended) -> None:
        assert ended.error is not None
        if isinstance(ended.error, PrimezeroError):
            raise ended.error
        raise PrimezeroError(f"{self._reason(ended)}\n{self._log(ended.name)}") from ended.error

    def _recover(self, unit: Unit, process: str, reason: str) -> None:
        """End what is left of a unit, and have it started again in a while, unless that has been tried enough."""
        self._set_aside(unit)
        if unit is self._learner:
            self.summary = self._finished()
            if self.summary is not None:
                self._goodbyes_said = False
                return
        now = self._clock()
        progress = self._progress().get(unit.name, 0)
        unit.failures = [
            failure for failure in unit.failures if now - failure.at < WINDOW_S or failure.progress == progress
        ]
        before = len(unit.failures)
        if before >= self._max_restarts:
            times = f", after {before} restarts within ten minutes or without progress since" if before else ""
            error = PrimezeroError(
                f"{reason}{times} (run.max_restarts={self._max_restarts}); {self._log(process)}. Given again, the "
                "same command goes on from the last checkpoint"
            )
            self._doubts.append(_Doubt(now + self._loss_s, unit, lambda: _raise(error)))
            return
        delay = min(LONGEST_BACKOFF_S, 2.0 ** (before - 1)) if before else 0.0
        unit.failures.append(_Failure(now, progress))
        unit.due = now + delay
        self._on_restart(Restart(unit.name, _brief(reason), before + 1, self._max_restarts, delay, unit.go_on()))

    def _set_aside(self, unit: Unit) -> None:
        """End what is left of it, and expect nothing of it any more."""
        self._doubts = [doubt for doubt in self._doubts if doubt.unit is not unit]
        self._processes.end(unit.processes)
        self._liveness.forget(unit.processes)

    def _reason(self, ended: Ended) -> str:
        if isinstance(ended.error, ProcessDied):
            return ended.error.reason(ended.name)
        assert ended.error is not None
        return f"{ended.name} failed: {described(ended.error)}"

    def _log(self, process: str) -> str:
        """Where to look; what dies before it has a log leaves none."""
        log = self._logs / f"{process}.log"
        return f"see {log}" if log.is_file() else f"it had not come so far as to begin its log, {log}"


def _brief(reason: str) -> str:
    """The first line, and of a long one as many words as there is room for."""
    return textwrap.shorten(reason.partition("\n")[0], REASON_CHARACTERS, placeholder=" …")


def _raise(error: Exception) -> None:
    raise error


def _order(ended: Ended) -> int:
    """Of what ended together: a summary outweighs all, and a death explains the errors beside it."""
    if ended.error is None:
        return 0
    return 1 if isinstance(ended.error, ProcessDied) else 2
