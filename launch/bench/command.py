"""The arguments of `primezero bench`. Nothing heavy is imported before a benchmark runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from launch.bench import chaos, e2e, learner, rollout, soak, start, sync, wire
from launch.bench.benchmark import Benchmark
from launch.engine_noise import engine_noise
from launch.help_format import HelpFormatter
from shared.errors import ConfigError, PrimezeroError
from shared.metrics import check_writable, write_json

_BENCHMARKS = (
    rollout.BENCHMARK,
    learner.BENCHMARK,
    wire.BENCHMARK,
    sync.BENCHMARK,
    e2e.BENCHMARK,
    start.BENCHMARK,
    soak.BENCHMARK,
    chaos.BENCHMARK,
)
_METAVARS = {int: "N", float: "X", str: "NAME", tuple: "A,B,..."}


def add_bench(commands: Any) -> None:
    """Add the `bench` command, with one command of its own for each benchmark, to the parser's `commands`."""
    bench = commands.add_parser(
        "bench", help="measure this machine", description="Measure this machine.", formatter_class=HelpFormatter
    )
    parsers = bench.add_subparsers(required=True, metavar="BENCHMARK")
    for benchmark in _BENCHMARKS:
        parser = parsers.add_parser(
            benchmark.name,
            help=benchmark.explained,
            formatter_class=HelpFormatter,
            description=benchmark.description,
            epilog=benchmark.examples,
        )
        for field in fields(benchmark.settings):
            _add_setting(parser, field)
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
        parser.set_defaults(command=partial(_run, benchmark))


def _add_setting(parser: argparse.ArgumentParser, field: Field[Any]) -> None:
    default: Any = field.default
    several = isinstance(default, tuple)
    shown = ",".join(default) if several else default
    parser.add_argument(
        f"--{field.name.replace('_', '-')}",
        type=_names if several else type(default),
        default=default,
        metavar=_METAVARS[type(default)],
        help=field.metadata["help"] + (f"; default {shown}" if shown != "" else ""),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _impossible(settings: type, error: ValidationError) -> str:
    """Why no run's configuration could be made of the sizes, most of which are called as its keys are."""
    said = error.errors()[0]
    key = ".".join(map(str, said["loc"]))
    name = key.rpartition(".")[2]
    known = any(field.name == name for field in fields(settings))
    what = "--" + name.replace("_", "-") if known else f"these sizes make no run ({key})"
    return f"{what}: {said['msg']}"


def _run(benchmark: Benchmark, options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if overrides:
        raise ConfigError(
            f"{overrides[0]}: a benchmark has no configuration; `primezero bench {benchmark.name} --help` lists all"
        )
    if options.json is not None:
        check_writable(options.json)
    settings = benchmark.settings(**{f.name: getattr(options, f.name) for f in fields(benchmark.settings)})
    # Ended from outside, as by timeout(1), it still cleans up: its model, its segment, its run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with engine_noise() as noise:
        try:
            with noise.kept() as screen:
                report, faults = benchmark.run(settings, lambda what: print(f"bench: {what}", file=screen, flush=True))
        except ValidationError as error:
            raise ConfigError(_impossible(benchmark.settings, error)) from error
        except (EOFError, ConnectionError) as error:
            raise PrimezeroError(
                "a process of the benchmark has died; what it had to say stands above. One that says nothing was "
                "killed, most often for want of memory: choose smaller sizes, --help has them all"
            ) from error
    print(report.as_table())
    if options.json is not None:
        write_json(options.json, report.as_json())
    if faults:
        raise PrimezeroError("; ".join(faults))
