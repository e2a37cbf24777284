"""`primezero bench start`: from the command to the first step, what the time goes on, and whose it is."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median

import psutil

from launch.bench.benchmark import Benchmark, faultless
from launch.bench.report import Report, Result, machine
from launch.bench.settings import setting
from launch.bench.started_run import StartedRun, last_lines
from launch.bench.usage import label_of
from launch.bench.workplace import Workplace, workplace
from shared.errors import ConfigError, PrimezeroError

_LIBRARIES = "import vllm.v1.engine.async_llm, torch, deepspeed, ray"
_START_S = 600.0
_SAMPLE_S = 0.1
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) INFO \S+: (.*)")
# Each phase ends with a line of one of the logs: the worker's (rollout-0) or the learner's.
_PHASES = (
    ("launcher and Ray", "rollout-0", "loads its libraries"),
    ("worker's imports", "rollout-0", "starts the engine"),
    ("engine", "rollout-0", "waits for the learner"),
    ("first weights", "learner-0", "its weights are in place"),
)
# Beside them, of the learner.
_BESIDE = (
    ("learner's imports", "loads its libraries", "loads the model"),
    ("learner's model", "loads the model", "waits for the engine"),
)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    model: str = setting("tiny", "a model folder, or tiny: the CPU demo's, made first")
    starts: int = setting(3, "how many starts; figures are medians")
    seed: int = setting(0, "of the runs, and of the model that is made")


@dataclass(frozen=True, slots=True)
class Start:
    """One start. first_step_s: from the command; phases: seconds; cpu: processor seconds of each process"""

    first_step_s: float
    phases: Mapping[str, float]
    cpu: Mapping[str, float] = field(default_factory=dict)


def bench_start(settings: StartSettings, say: Say = lambda _: None) -> Report:
    """Run the benchmark; `say` is told what is being done. Raises PrimezeroError where a run dies."""
    if settings.starts < 1:
        raise ConfigError("--starts must be at least 1")
    starts, imports = list[Start](), list[tuple[float, float]]()
    with workplace("", settings.model, settings.seed, say) as place:
        for number in range(1, settings.starts + 1):
            say(f"start {number} of {settings.starts}")
            imports.append(_import_libraries())
            starts.append(_start(settings, place, place.run.with_name(f"run-{number}")))
        return Report(
            benchmark="start",
            machine=machine(),
            model=place.described(),
            settings={"starts": settings.starts, "seed": settings.seed},
            results=tuple(start_results(starts, imports)),
        )


def start_results(starts: Sequence[Start], imports: Sequence[tuple[float, float]]) -> list[Result]:
    """Medians over the starts, beside those of the libraries' import: its seconds, and its processor seconds."""
    wall, cpu = (median(seconds) for seconds in zip(*imports, strict=True))
    against = "the libraries' import alone"
    phases = dict.fromkeys(name for start in starts for name in start.phases)
    processes = sorted({name for start in starts for name in start.cpu})
    return [
        Result("first_step", median(start.first_step_s for start in starts), "s", wall, against),
        *(Result(name, median(start.phases.get(name, 0.0) for start in starts), "s") for name in phases),
        Result("processor", median(sum(start.cpu.values()) for start in starts), "s", cpu, against),
        *(
            Result(f"processor of {name}", median(start.cpu.get(name, 0.0) for start in starts), "s")
            for name in processes
        ),
    ]


def _import_libraries() -> tuple[float, float]:
    """Seconds, and processor seconds."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"{_LIBRARIES}; import time; print(time.process_time())"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said, _ = process.communicate(timeout=_START_S)
    return time.monotonic() - begin, float(said.split()[-1])


def _start(settings: StartSettings, place: Workplace, folder: Path) -> Start:
    run_settings = {
        **place.settings,
        "run.seed": settings.seed,
        "run.steps": 1,
        "run.final_evaluations": 1,
    }
    with place.output.open("w", encoding="utf-8") as output:
        begun = datetime.now()
        run = StartedRun(folder, run_settings, temporary=place.temporary, output=output)
        try:
            while not run.step():
                if run.process.poll() is not None:
                    raise PrimezeroError(f"the run ended before its first step:\n{last_lines(place.output)}")
                if (datetime.now() - begun).total_seconds() > _START_S:
                    raise PrimezeroError(f"the run made no step within {_START_S:g} s:\n{last_lines(place.output)}")
                time.sleep(_SAMPLE_S)
            ended = datetime.now()
            cpu = _processor_seconds(run)
            run.process.wait(_START_S)
        finally:
            run.kill()
    said = {name: _said(folder / "logs" / f"{name}.log") for name in ("rollout-0", "learner-0")}
    return Start((ended - begun).total_seconds(), phases(begun, ended, said), cpu)


def phases(begun: datetime, ended: datetime, said: Mapping[str, Mapping[str, datetime]]) -> dict[str, float]:
    """Seconds of what follows on another, from the command to the first step; and of the learner's, beside them.

    said: of each process, when it first said what, from its log
    """
    found, last = {}, begun
    for phase, process, line in _PHASES:
        found[phase] = (said[process][line] - last).total_seconds()
        last = said[process][line]
    found["first evaluation and step"] = (ended - last).total_seconds()
    learner = said["learner-0"]
    return found | {phase: (learner[ends] - learner[begins]).total_seconds() for phase, begins, ends in _BESIDE}


def _said(log: Path) -> dict[str, datetime]:
    found: dict[str, datetime] = {}
    if log.exists():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := _LINE.match(line):
                found.setdefault(match[2], datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f"))
    return found


def _processor_seconds(run: StartedRun) -> dict[str, float]:
    """What the run's processes have used, those of one name added up."""
    used: dict[str, float] = defaultdict(float)
    for process in run.processes():
        with contextlib.suppress(OSError, psutil.Error):
            name = "launcher" if process.pid == run.process.pid else label_of(process)
            used[name] += sum(process.cpu_times())
    return used


BENCHMARK = Benchmark(
    "start",
    "from the command to the first step",
    StartSettings,
    faultless(bench_start),
    description="""\
Starts a run of the CPU demo's configuration several times: seconds from the command to its first
step, what they go on, and the processor seconds of each process, beside the import of the libraries
that a run stands on, alone and in one process.
""",
    examples="""\
examples:
  primezero bench start
  primezero bench start --starts 5 --json start.json
""",
)
