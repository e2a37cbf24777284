"""`primezero report`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.help_format import HelpFormatter
from launch.run_folder import METRICS_FILE
from launch.run_records import RunRecords, read_run, unreadable_lines
from shared.disk import reason
from shared.errors import ConfigError, InstallationError
from shared.metrics import replace_file

_DESCRIPTION = """\
One HTML page about a run, and its figures as PNG: what was learned, how proposer and solver fared, where
the time went, sample episodes. It needs nothing from elsewhere, so it can be mailed or opened anywhere.
Of several runs, a page that compares them. A run may still be going.
"""
_EXAMPLES = """\
examples:
  primezero report runs/mine
  primezero report runs/mine runs/other --out compared
"""


def add_report(commands: Any) -> None:
    """Add the `report` command to the parser's `commands`."""
    report = commands.add_parser(
        "report",
        help="make a page of a run, or one that compares runs",
        formatter_class=HelpFormatter,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    report.add_argument("folders", type=Path, nargs="+", metavar="RUN_FOLDER", help="the folder of a run")
    report.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where index.html and the figures go; by default report/ in the run's folder, or report/ here for several",
    )
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace, _: Sequence[str]) -> None:
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise InstallationError(
            f"a report needs matplotlib ({error}): pip install 'primezero[report]', or uv pip install matplotlib"
        ) from error
    runs = _runs(options.folders)
    for path in (run.folder / METRICS_FILE for run in runs):
        if lines := unreadable_lines(path):
            print(f"{path} is damaged: {lines} of its lines cannot be read, and are left out", file=sys.stderr)
    out: Path = options.out or (runs[0].folder / "report" if len(runs) == 1 else Path("report"))
    page = write_report(runs, out)
    print(f"{page} ({page.stat().st_size / 2**20:.1f} MiB), and its figures beside it")


def write_report(runs: Sequence[RunRecords], out: Path) -> Path:
    """Write `out`/index.html and the figures; the page's path. What else is in `out` stays."""
    from launch.report.build import build
    from launch.report.page import render

    page = build(runs)
    html = render(page)
    try:
        out.mkdir(mode=0o755, parents=True, exist_ok=True)  # a run folder that others can write is not resumed
        for figure in page.figures:
            (out / f"{figure.key}.png").write_bytes(figure.png)
        replace_file(out / "index.html", html)
    except OSError as error:
        raise ConfigError(f"cannot write the report to {out}: {reason(error)}; choose a place with --out") from error
    return out / "index.html"


def _runs(folders: Sequence[Path]) -> list[RunRecords]:
    from launch.plotting import MOST_LINES

    if len(folders) > MOST_LINES:
        raise ConfigError(f"{len(folders)} runs are too many to tell apart in a figure: compare up to {MOST_LINES}")
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"two of the runs are called {min(twice)}: runs are compared by the names of their folders")
    return runs
