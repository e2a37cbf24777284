"""`primezero doctor`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from launch.help_format import HelpFormatter
from shared.config_file import load_config
from shared.errors import PrimezeroError

_DESCRIPTION = """\
Check whether this machine can run a training: Python, libraries, compilers, GPU, driver, memory, disk,
shared memory, ports, model folder; and say what to do. Exit code 1 when something would stop a run.
Any configuration key can follow as --section.key VALUE; `primezero config` lists them.
"""
_EXAMPLES = """\
examples:
  primezero doctor
  primezero doctor --config launch/configs/cpu_demo.toml --model.path models/tiny
  primezero doctor --json
"""


def add_doctor(commands: Any) -> None:
    """Add the `doctor` command to the parser's `commands`."""
    doctor = commands.add_parser(
        "doctor",
        help="check this machine, and say what to do",
        formatter_class=HelpFormatter,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    doctor.add_argument("--config", type=Path, help="a TOML file: of the run that is to be started")
    doctor.add_argument("--json", action="store_true", help="the findings as a JSON object")
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from launch.doctor import hardware, places, software
    from launch.doctor.findings import Status, run_checks

    config = load_config(options.config, overrides)
    named = options.config is not None or any(word.startswith("--model.path") for word in overrides)
    findings = run_checks(
        [
            ("python", software.check_python),
            ("packages", software.check_packages),
            ("compilers", partial(software.check_compilers, config)),
            ("GPU", hardware.check_gpu),
            ("CUDA allocator", partial(hardware.check_allocator, config)),
            ("memory", hardware.check_memory),
            ("processor cores", hardware.check_cores),
            ("disk", partial(places.check_disks, config)),
            ("temporary folder", places.check_temporary_place),
            ("ports", partial(places.check_addresses, config)),
            ("environment", places.check_variables),
            ("model folder", partial(places.check_model, config, named=named)),
        ]
    )
    stopping = [finding.name for finding in findings if finding.status is Status.FAIL]
    if options.json:
        print(json.dumps({"ok": not stopping, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _show(findings)
    if stopping:
        raise PrimezeroError(f"{', '.join(stopping)}: as long as that is so, a run does not start, or does not last")


def _show(findings: Sequence[Any]) -> None:
    """A line for each, what to do below it; folded to the width of the terminal."""
    from rich.table import Table
    from rich.text import Text

    from launch.printable import printable
    from launch.standard_output import console

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in findings:
        said = printable(finding.found) + (f"\n-> {printable(finding.advice)}" if finding.advice else "")
        table.add_row(Text(finding.status, styles[finding.status]), finding.name, Text(said))
    console().print(table)
