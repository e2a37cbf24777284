"""`python -m launch.experiments run` and `python -m launch.experiments report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.experiments.plan import DEFAULT_OUT, planned_runs
from launch.experiments.processes import unwound_by_sigterm
from launch.experiments.report import data_folder, write_report
from launch.experiments.runner import run_plan
from launch.model_recipe import ROOT
from shared.errors import ConfigError, PrimezeroError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 1 where a run failed or something is not usable."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except PrimezeroError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    runs = planned_runs(_words(options.only), _seeds(options.seeds))
    with unwound_by_sigterm():
        failed = run_plan(runs, options.out, data_folder(ROOT / options.docs))
    if failed:
        print(f"{len(failed)} of {len(runs)} runs failed: {', '.join(run.name for run in failed)}", file=sys.stderr)
    return int(bool(failed))


def _report(options: argparse.Namespace) -> int:
    found = write_report(ROOT / options.docs)
    print(f"{found} of {len(planned_runs())} planned runs are in {options.docs / 'learning.md'}")
    return 0


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: expected whole numbers such as 0,1") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launch.experiments", description="The experiments behind docs/learning.md.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train what is missing of the plan, and keep each run's data")
    run.add_argument("--only", default="", metavar="NAME,...", help="these variants; by default all")
    run.add_argument("--seeds", default="", metavar="N,...", help="these seeds; by default all")
    run.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where runs are kept (%(default)s)")
    run.set_defaults(command=_run)
    report = commands.add_parser("report", help="write the tables and figures from the kept data")
    report.set_defaults(command=_report)
    for command in (run, report):
        command.add_argument("--docs", type=Path, default=Path("docs"), help="folder of learning.md (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
