"""`primezero bench soak`: whether anything grows while a run goes on and on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from launch.bench.benchmark import Benchmark, faultless
from launch.bench.growth import Sample, growth_results
from launch.bench.report import Report, Result, machine
from launch.bench.settings import setting
from launch.bench.started_run import StartedRun, last_lines
from launch.bench.usage import Watch
from launch.bench.workplace import Workplace, workplace
from shared.errors import ConfigError, PrimezeroError

_START_S = 600.0
_FINISH_S = 600.0
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SoakSettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    model: str = setting("tiny", "a model folder, or tiny: the CPU demo's, made first")
    minutes: float = setting(30.0, "how long the run goes on, from its first step")
    baseline_minute: float = setting(5.0, "growth is counted from here on: what is made once has been made")
    window_minutes: float = setting(1.0, "length of the windows at either end whose medians are compared")
    interval_s: float = setting(10.0, "seconds between samples")
    seed: int = setting(0, "of the run, and of the model that is made")
    folder: str = setting("", "a new folder for the run, which stays; by default kept only if something goes wrong")


def bench_soak(settings: SoakSettings, say: Say = lambda _: None) -> Report:
    """Run the benchmark; `say` is told what is being done. Raises PrimezeroError where the run dies."""
    # The last sample may come as much as an interval before the end.
    if settings.baseline_minute + 2 * settings.window_minutes + settings.interval_s / 60 > settings.minutes:
        raise ConfigError(
            f"--minutes {settings.minutes:g} is too short for two windows of {settings.window_minutes:g} minutes after "
            f"minute {settings.baseline_minute:g}, and one --interval-s"
        )
    if min(settings.interval_s, settings.window_minutes) <= 0 or settings.interval_s > 30 * settings.window_minutes:
        raise ConfigError("--interval-s must be above 0, and let two samples fall into --window-minutes")
    with workplace(settings.folder, settings.model, settings.seed, say) as place:
        samples, steps, restarts = _samples(settings, place, say)
        shown = {k: v for k, v in asdict(settings).items() if k not in ("model", "folder")}
        return Report(
            benchmark="soak",
            machine=machine(),
            model=place.described(),
            settings=shown,
            results=(
                *growth_results(samples, begin_s=60 * settings.baseline_minute, window_s=60 * settings.window_minutes),
                Result("steps", steps, ""),
                Result("restarts", restarts, ""),
                Result("samples", len(samples), ""),
            ),
        )


def _samples(settings: SoakSettings, place: Workplace, say: Say) -> tuple[list[Sample], int, int]:
    """Samples of the run, its steps and its restarts; it has ended well by then."""
    run_settings = {
        **place.settings,
        "run.seed": settings.seed,
        "run.steps": 10**6,
        "run.time_limit_s": "none",
    }
    with place.output.open("w", encoding="utf-8") as output:
        run = StartedRun(place.run, run_settings, temporary=place.temporary, output=output)
        try:
            say("starting the run")
            begin = time.monotonic()
            while not run.step():
                _check_alive(run, place)
                if time.monotonic() - begin > _START_S:
                    raise PrimezeroError(f"the run made no step within {_START_S:g} s:\n{last_lines(place.output)}")
                time.sleep(1)
            samples = _watch(settings, run, place, say)
            run.press_ctrl_c()
            try:
                code = run.process.wait(_FINISH_S)
            except subprocess.TimeoutExpired as error:
                raise PrimezeroError(
                    f"the run did not end within {_FINISH_S:g} s of Ctrl-C:\n{last_lines(place.output)}"
                ) from error
            if code:
                raise PrimezeroError(f"the run ended with exit code {code}:\n{last_lines(place.output)}")
            return samples, run.step(), len(run.records("restarts.jsonl"))
        finally:
            run.kill()


def _watch(settings: SoakSettings, run: StartedRun, place: Workplace, say: Say) -> list[Sample]:
    watch, samples, said = Watch(run.process.pid), list[Sample](), 0
    begin = time.monotonic()
    while (seconds := time.monotonic() - begin) < 60 * settings.minutes:
        _check_alive(run, place)
        samples.append(watch.sample(run.processes(), seconds))
        if seconds // 60 > said:
            said = int(seconds // 60)
            memory = sum(usage.memory for usage in samples[-1].usage.values())
            say(f"minute {said} of {settings.minutes:g}: step {run.step()}, {memory / 2**20:.0f} MiB in all")
        due = begin + len(samples) * settings.interval_s
        time.sleep(max(0.0, due - time.monotonic()))
    return samples


def _check_alive(run: StartedRun, place: Workplace) -> None:
    if (code := run.process.poll()) is not None:
        raise PrimezeroError(f"the run ended by itself, with exit code {code}:\n{last_lines(place.output)}")


BENCHMARK = Benchmark(
    "soak",
    "what grows in a long run",
    SoakSettings,
    faultless(bench_soak),
    description="""\
Whether anything grows while a run of the CPU demo's configuration goes on: memory and open files
of each of its processes, its files in shared memory. Ends with 1 where the run dies.
""",
    examples="""\
examples:
  primezero bench soak --json soak.json
  primezero bench soak --minutes 240 --model models/tiny-0
""",
)
