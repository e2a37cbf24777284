"""`primezero export`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.help_format import HelpFormatter
from launch.run_records import read_run, run_config

_DESCRIPTION = """\
A run's model as a plain Hugging Face folder, which transformers and `vllm serve` load as it is, with a
model card of the run. It is the model that the run ended with or, of a run that still goes, its newest
checkpoint's. The card states no license: that is for you.
"""
_EXAMPLES = """\
examples:
  primezero export runs/mine models/mine
  primezero export runs/mine models/mine-220 --step 220
"""


def add_export(commands: Any) -> None:
    """Add the `export` command to the parser's `commands`."""
    export = commands.add_parser(
        "export",
        help="write a run's model as a Hugging Face folder",
        formatter_class=HelpFormatter,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    export.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="the folder of a run")
    export.add_argument("out", type=Path, metavar="OUT", help="where the model goes; a folder that is not there yet")
    export.add_argument("--step", type=int, metavar="N", help="that of a checkpoint; by default the newest model")
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace, _: Sequence[str]) -> None:
    run = read_run(options.folder)
    from launch.export.folder import export

    source = export(run, run_config(options.folder), options.out, options.step)
    origin = "the run's end" if source.checkpoint is None else source.checkpoint
    print(f"{options.out}: the model of step {source.step}, from {origin}")
