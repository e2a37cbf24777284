"""`primezero bench chaos`: a run whose processes are killed and stopped, and what became of its work."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from launch.bench.benchmark import Benchmark
from launch.bench.chaos_plan import BLOWS, VICTIMS, GoingOn, Hit, plan
from launch.bench.report import Report, Result, machine
from launch.bench.settings import setting
from launch.bench.started_run import KINDS, StartedRun, last_lines, wait_until_gone
from launch.bench.workplace import Workplace, workplace
from shared.errors import ConfigError, PrimezeroError

if TYPE_CHECKING:
    from learner.audit import Audit

# At 2 a hit seldom costs more than a step; the first hit finds a checkpoint to go on from.
_CHECKPOINT_EVERY = 2
_FEWEST_STEPS = 60
_POLL_S = 0.25
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ChaosSettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    model: str = setting("tiny", "a model folder, or tiny: the CPU demo's, made first")
    steps: int = setting(120, "of the run, 60 at least")
    hits: int = setting(20, "blows that the run is dealt")
    seed: int = setting(0, "of the hits, the run, and the model that is made")
    stopped_s: float = setting(10.0, "from SIGSTOP to SIGCONT")
    vanish_s: float = setting(10.0, "limit for everything of a run to vanish whose launcher was killed")
    stalled_s: float = setting(900.0, "the run is given up when it makes no step for so long")
    folder: str = setting("", "a new folder for the run, which stays; by default kept only if something goes wrong")


@dataclass(slots=True)
class Outcome:
    """What happened. exit_code: of the launcher that was started last; restarts: on record"""

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: int = 0
    exit_code: int | None = None
    steps: int = 0
    restarts: int = 0
    wall_s: float = 0.0
    summary: dict[str, Any] | None = None


def bench_chaos(settings: ChaosSettings, say: Say = lambda _: None) -> tuple[Report, list[str]]:
    """Run the benchmark; the report, and what should not have come out, nothing if all is well.

    Raises PrimezeroError where the run cannot even be judged.
    """
    if settings.steps < _FEWEST_STEPS or not 1 <= settings.hits <= settings.steps // 2:
        raise ConfigError(f"--steps must be at least {_FEWEST_STEPS}, and --hits between 1 and half of that")
    with workplace(settings.folder, settings.model, settings.seed, say) as place:
        outcome = _Ordeal(settings, place, say).go_through()
        from learner.audit import audit

        audited = audit(place.run)
        faults = find_faults(settings, outcome, audited)
        if faults:
            say(f"what the run printed last:\n{last_lines(place.output)}")
            place.keep = True
        shown = {k: v for k, v in asdict(settings).items() if k not in ("model", "folder")}
        report = Report(
            benchmark="chaos",
            machine=machine(),
            model=place.described(),
            settings=shown | {"checkpoint_every": _CHECKPOINT_EVERY},
            results=tuple(results(settings, outcome, audited)),
        )
    return report, faults


class _Ordeal:
    """The run, from its first start to its end, with everything that is done to it."""

    def __init__(self, settings: ChaosSettings, place: Workplace, say: Say) -> None:
        self._settings = settings
        self._place = place
        self._say = say
        self._outcome = Outcome()
        self._going_on = GoingOn()
        self._run_settings = {
            **place.settings,
            "run.seed": settings.seed,
            "run.steps": settings.steps,
            "run.time_limit_s": "none",
            "run.checkpoint_every": _CHECKPOINT_EVERY,
            "run.max_restarts": 10 * settings.hits,
        }

    def go_through(self) -> Outcome:
        """Everything, to the end of the run; nothing of it is left then."""
        settings, outcome, begin = self._settings, self._outcome, time.monotonic()
        with self._place.output.open("w", encoding="utf-8") as self._output:
            self._run = self._start()
            try:
                first = _CHECKPOINT_EVERY + 1
                for hit in plan(steps=settings.steps, hits=settings.hits, first=first, seed=settings.seed):
                    if not self._wait_for(hit.step):
                        break
                    time.sleep(hit.delay_s)
                    self._deal(hit)
                self._wait_for(None)
                outcome.exit_code = self._run.process.wait()
                outcome.steps, outcome.summary = self._run.step(), self._run.summary()
                outcome.restarts = len(self._run.records("restarts.jsonl"))
                outcome.wall_s = time.monotonic() - begin
                return outcome
            finally:
                self._run.kill()

    def _start(self) -> StartedRun:
        self._outcome.launches += 1
        return StartedRun(self._place.run, self._run_settings, temporary=self._place.temporary, output=self._output)

    def _wait_for(self, step: int | None) -> bool:
        """Until the run has made this step, and one since the last hit; None: until it ends. Whether it goes on."""
        seen, since = -1, time.monotonic()
        while self._run.process.poll() is None:
            now = self._run.step()
            if self._going_on.has_made(now) and step is not None and now >= step:
                return True
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > self._settings.stalled_s:
                raise PrimezeroError(
                    f"the run has made no step for {self._settings.stalled_s:g} s:\n{last_lines(self._place.output)}"
                )
            time.sleep(_POLL_S)
        return False

    def _deal(self, hit: Hit) -> None:
        victim = self._victim(hit.victim)
        if victim is None:
            return
        made = self._run.step()
        with contextlib.suppress(psutil.NoSuchProcess):
            if hit.blow == "SIGKILL":
                victim.kill()
            else:
                victim.suspend()
                try:
                    time.sleep(self._settings.stopped_s)
                finally:
                    victim.resume()
        self._outcome.hits[hit.victim, hit.blow] += 1
        self._going_on.hit()
        self._say(f"hit {self._outcome.hits.total()} of {self._settings.hits}, at step {made}: {hit.victim} {hit.blow}")
        if hit.victim == "launcher" and hit.blow == "SIGKILL":
            self._launch_again()

    def _victim(self, kind: str) -> psutil.Process | None:
        """The process to hit, once there is one; None where the run ends first."""
        begin = time.monotonic()
        while self._run.process.poll() is None:
            found = [psutil.Process(self._run.process.pid)] if kind == "launcher" else self._run.find(KINDS[kind])
            if found:
                return found[0]
            if time.monotonic() - begin > self._settings.stalled_s:
                raise PrimezeroError(f"the run has had no {kind} for {self._settings.stalled_s:g} s")
            time.sleep(_POLL_S)
        return None

    def _launch_again(self) -> None:
        """The same command, once the killed launcher's processes have vanished, by themselves."""
        self._run.process.wait()
        if left := wait_until_gone(self._run.processes, self._settings.vanish_s):
            raise PrimezeroError(
                f"{self._settings.vanish_s:g} s after the launcher was killed {len(left)} of its processes are "
                f"still there, such as pid {left[0].pid}"
            )
        if self._run.summary() is None:  # else it was complete already
            self._run = self._start()


def find_faults(settings: ChaosSettings, outcome: Outcome, audited: Audit) -> list[str]:
    """What should not have come out, each in a few words."""
    faults = []
    complete = outcome.summary is not None and outcome.summary["steps"] == settings.steps
    # A launcher may have been killed that had nothing left to do but leave.
    if not complete or outcome.exit_code not in (0, -signal.SIGKILL):
        faults.append(f"the run did not finish: exit code {outcome.exit_code}, at step {outcome.steps}")
    if (dealt := outcome.hits.total()) < settings.hits:
        faults.append(f"the run was hit only {dealt} times of {settings.hits}: raise --steps")
    if audited.lost:
        faults.append(f"{audited.lost} acknowledged tickets were lost")
    if audited.twice:
        faults.append(f"{audited.twice} tickets were trained on twice")
    return faults


def results(settings: ChaosSettings, outcome: Outcome, audited: Audit) -> Iterator[Result]:
    """Everything that is reported; accuracies only of a run that has finished."""
    yield Result("hits", outcome.hits.total(), "", settings.hits, "planned")
    for victim in VICTIMS:
        for blow in BLOWS:
            yield Result(f"hits.{victim}.{blow}", outcome.hits[victim, blow], "")
    yield Result("restarts", outcome.restarts, "")
    yield Result("launches", outcome.launches, "")
    yield Result("steps", outcome.steps, "", settings.steps, "asked for")
    yield Result("acknowledged", audited.acknowledged, "tickets")
    yield Result("trained", audited.trained, "tickets", audited.acknowledged, "acknowledged")
    yield Result("dropped", sum(audited.dropped.values()), "tickets", audited.acknowledged, "acknowledged")
    for reason, count in sorted(audited.dropped.items()):
        yield Result(f"dropped.{reason}", count, "tickets")
    yield Result("open", audited.open, "tickets")
    yield Result("lost", audited.lost, "tickets")
    yield Result("twice", audited.twice, "tickets")
    if outcome.summary is not None:
        before, after = outcome.summary["accuracy_before"], outcome.summary["accuracy_after"]
        yield Result("accuracy_before", before, "")
        yield Result("accuracy_after", after, "", before, "before")
    yield Result("wall_s", outcome.wall_s, "s")


BENCHMARK = Benchmark(
    "chaos",
    "a run whose processes are killed",
    ChaosSettings,
    bench_chaos,
    description="""\
A run of the CPU demo's configuration whose processes are killed and stopped at random moments of
a seed, and an audit of what became of its work. Ends with 1 where anything acknowledged was lost
or trained on twice, or where the run did not finish.
""",
    examples="""\
examples:
  primezero bench chaos --json chaos.json
  primezero bench chaos --steps 240 --hits 40 --seed 1 --folder chaos-1
""",
)
