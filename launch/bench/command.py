"""The arguments of `primezero bench`. Nothing heavy is imported before a benchmark runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from launch.bench.models import SHAPES
from launch.bench.sync import SyncSettings, bench_sync
from shared.errors import ConfigError
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


def add_bench(commands: Any) -> None:
    """Add the `bench` command, with one command of its own for each benchmark, to the parser's `commands`."""
    bench = commands.add_parser("bench", help="measure this machine", description="Measure this machine.")
    benchmarks = bench.add_subparsers(required=True, metavar="BENCHMARK")
    sync = benchmarks.add_parser(
        "sync",
        help="weights into a running engine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_SYNC_DESCRIPTION,
        epilog=_SYNC_EXAMPLES,
    )
    for field in fields(SyncSettings):
        default: Any = field.default
        several = isinstance(default, tuple)
        sync.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_names if several else type(default),
            default=default,
            help=f"{field.metadata['help']}; default {','.join(default) if several else default}",
        )
    sync.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    sync.set_defaults(command=_sync)


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _sync(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if overrides:
        raise ConfigError(f"{overrides[0]}: a benchmark has no configuration; `primezero bench sync --help` lists all")
    if options.json is not None:
        check_writable(options.json)
    settings = SyncSettings(**{f.name: getattr(options, f.name) for f in fields(SyncSettings)})
    # Ended from outside, as by timeout(1), it still cleans up: the model that it made, and its segment.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = bench_sync(settings, lambda what: print(f"bench: {what}", file=sys.stderr, flush=True))
    print(report.as_table())
    if options.json is not None:
        write_json(options.json, report.as_json())
