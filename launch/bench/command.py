"""The arguments of `primezero bench`. Nothing heavy is imported before a benchmark runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from launch.bench.chaos import ChaosSettings, bench_chaos
from launch.bench.e2e import E2ESettings, bench_e2e
from launch.bench.learner import LearnerSettings, bench_learner
from launch.bench.models import SHAPES
from launch.bench.report import Report
from launch.bench.rollout import RolloutSettings, bench_rollout
from launch.bench.soak import SoakSettings, bench_soak
from launch.bench.sync import SyncSettings, bench_sync
from launch.bench.wire import WireSettings, bench_wire
from shared.errors import ConfigError, PrimezeroError
from shared.metrics import check_writable, write_json

_SYNC_DESCRIPTION = """\
What putting new weights into a running engine costs: bytes, calls, seconds of each phase, a plain
copy of the same bytes, and what the generation loses. docs/benchmarks.md explains every figure.
"""
_SYNC_EXAMPLES = f"""\
examples:
  primezero bench sync --json sync.json
  primezero bench sync --model models/some-instruct-model --modes keep --requests 64

--model is a model folder, or a shape with random weights: {", ".join(SHAPES)}.
"""
_E2E_DESCRIPTION = """\
A whole step: rollout and learner at work together, against the slower of the two alone, and
against transformers.generate with a plain PyTorch update. docs/benchmarks.md explains every figure.
"""
_E2E_EXAMPLES = f"""\
examples:
  primezero bench e2e --json e2e.json
  primezero bench e2e --model qwen2.5-0.5b --dtype bfloat16 --rounds 5

--model is a model folder, or a shape with random weights: {", ".join(SHAPES)}.
"""
_LEARNER_DESCRIPTION = """\
What an update costs beside a bare loop and a padded one in plain PyTorch, what merging equal rows
saves, and what memory a step takes. docs/benchmarks.md explains every figure.
"""
_LEARNER_EXAMPLES = """\
examples:
  primezero bench learner --json learner.json
  primezero bench learner --model qwen2.5-0.5b --dtype bfloat16 --vocabulary 2048 --rows 8 --measures speed
"""
_SOAK_DESCRIPTION = """\
Whether anything grows while a run of the CPU demo's configuration goes on: memory and open files
of each of its processes, its files in shared memory. Ends with 1 where the run dies.
"""
_SOAK_EXAMPLES = """\
examples:
  primezero bench soak --json soak.json
  primezero bench soak --minutes 240 --model models/tiny-0
"""
_CHAOS_DESCRIPTION = """\
A run of the CPU demo's configuration whose processes are killed and stopped at random moments of
a seed, and an audit of what became of its work. Ends with 1 where anything acknowledged was lost
or trained on twice, or where the run did not finish.
"""
_CHAOS_EXAMPLES = """\
examples:
  primezero bench chaos --json chaos.json
  primezero bench chaos --steps 240 --hits 40 --seed 1 --folder chaos-1
"""
_ROLLOUT_DESCRIPTION = """\
What a rollout worker makes of its engine: tokens a second through the whole worker, self-play,
stream and acknowledgements included, beside vLLM alone on the same requests in the same engine.
"""
_ROLLOUT_EXAMPLES = f"""\
examples:
  primezero bench rollout --json rollout.json
  primezero bench rollout --response-tokens 64 --proposals-per-task 32 --buffer-problems-per-task 16

--model is a model folder, or a shape with random weights: {", ".join(SHAPES)}.
"""

_WIRE_DESCRIPTION = """\
What the stream costs: closed tickets from a worker's process to the learner's, with encoding,
checks, journal and acknowledgement as in a run, against raw ZeroMQ moving the same bytes.
"""
_WIRE_EXAMPLES = """\
examples:
  primezero bench wire --json wire.json
  primezero bench wire --transports tcp --response-tokens 4096
"""


@dataclass(frozen=True, slots=True)
class _Benchmark:
    """run: given the settings and who is told what is being done; the report, and what should not have come out"""

    name: str
    explained: str
    settings: type
    run: Callable[[Any, Callable[[str], None]], tuple[Report, list[str]]]
    description: str
    examples: str


def _faultless(bench: Callable[..., Report]) -> Callable[..., tuple[Report, list[str]]]:
    return lambda settings, say: (bench(settings, say), [])


_BENCHMARKS = (
    _Benchmark(
        "sync",
        "weights into a running engine",
        SyncSettings,
        _faultless(bench_sync),
        _SYNC_DESCRIPTION,
        _SYNC_EXAMPLES,
    ),
    _Benchmark(
        "e2e",
        "a whole step, rollout and learner together",
        E2ESettings,
        _faultless(bench_e2e),
        _E2E_DESCRIPTION,
        _E2E_EXAMPLES,
    ),
    _Benchmark(
        "rollout",
        "self-play on a running engine",
        RolloutSettings,
        _faultless(bench_rollout),
        _ROLLOUT_DESCRIPTION,
        _ROLLOUT_EXAMPLES,
    ),
    _Benchmark(
        "wire",
        "the stream of closed tickets",
        WireSettings,
        _faultless(bench_wire),
        _WIRE_DESCRIPTION,
        _WIRE_EXAMPLES,
    ),
    _Benchmark(
        "learner",
        "updates beside plain PyTorch",
        LearnerSettings,
        _faultless(bench_learner),
        _LEARNER_DESCRIPTION,
        _LEARNER_EXAMPLES,
    ),
    _Benchmark(
        "soak",
        "what grows in a long run",
        SoakSettings,
        _faultless(bench_soak),
        _SOAK_DESCRIPTION,
        _SOAK_EXAMPLES,
    ),
    _Benchmark(
        "chaos",
        "a run whose processes are killed",
        ChaosSettings,
        bench_chaos,
        _CHAOS_DESCRIPTION,
        _CHAOS_EXAMPLES,
    ),
)


def add_bench(commands: Any) -> None:
    """Add the `bench` command, with one command of its own for each benchmark, to the parser's `commands`."""
    bench = commands.add_parser("bench", help="measure this machine", description="Measure this machine.")
    parsers = bench.add_subparsers(required=True, metavar="BENCHMARK")
    for benchmark in _BENCHMARKS:
        parser = parsers.add_parser(
            benchmark.name,
            help=benchmark.explained,
            formatter_class=argparse.RawDescriptionHelpFormatter,
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
        help=field.metadata["help"] + (f"; default {shown}" if shown != "" else ""),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _run(benchmark: _Benchmark, options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if overrides:
        raise ConfigError(
            f"{overrides[0]}: a benchmark has no configuration; `primezero bench {benchmark.name} --help` lists all"
        )
    if options.json is not None:
        check_writable(options.json)
    settings = benchmark.settings(**{f.name: getattr(options, f.name) for f in fields(benchmark.settings)})
    # Ended from outside, as by timeout(1), it still cleans up: its model, its segment, its run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report, faults = benchmark.run(settings, lambda what: print(f"bench: {what}", file=sys.stderr, flush=True))
    print(report.as_table())
    if options.json is not None:
        write_json(options.json, report.as_json())
    if faults:
        raise PrimezeroError("; ".join(faults))
