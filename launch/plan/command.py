"""`primezero plan`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.bench.models import SHAPES
from launch.help_format import HelpFormatter
from launch.plan.advice import advise
from launch.plan.devices import DEVICES, GIB, Device, device_here, named_device
from launch.plan.run_plan import plan_run
from launch.plan.sizes import QWEN_VOCABULARY, model_sizes
from launch.plan.table import advice_text, plan_data, plan_table
from shared.config_file import load_config
from shared.errors import ConfigError, InstallationError, PlanError
from shared.metrics import check_writable, write_json

_DESCRIPTION = """\
Where every GiB of each GPU goes, as the placement puts learner and engines on them, and whether that
fits, before anything is allocated; no GPU is needed. What does not fit comes with what to change, and
exit code 1. Any configuration key can follow as --section.key VALUE; `primezero config` lists them.
"""
_EXAMPLES = f"""\
examples:
  primezero plan --model qwen2.5-3b --device a100-80gb --config launch/configs/single_a100.toml
  primezero plan --model models/some-instruct-model --device-gib 47.5 --learner.max_tokens 8192
  primezero plan --model qwen2.5-7b --device a100-80gb --config launch/configs/second_gpu.toml

--model is a folder with a config.json, or a shape:
  {", ".join(SHAPES)}
--device is one of {", ".join(DEVICES)}.
"""


def add_plan(commands: Any) -> None:
    """Add the `plan` command to the parser's `commands`."""
    plan = commands.add_parser(
        "plan",
        help="split the GPUs' memory",
        formatter_class=HelpFormatter,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    plan.add_argument("--model", metavar="FOLDER_OR_SHAPE", help="by default the configuration's model.path")
    device = plan.add_mutually_exclusive_group()
    device.add_argument("--device", metavar="NAME", help="by default the GPU of this machine")
    device.add_argument("--device-gib", type=float, metavar="N", help="a GPU with so much memory")
    plan.add_argument("--config", type=Path, help="a TOML file")
    plan.add_argument("--vocabulary", type=int, default=QWEN_VOCABULARY, metavar="N", help="of a shape; %(default)s")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write the plan there too, in bytes")
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = load_config(options.config, overrides)
    if options.json is not None:
        check_writable(options.json)
    name = options.model or str(config.model.path)
    model, device = model_sizes(name, options.vocabulary), _device(options)
    plan = plan_run(config, model, device)
    advice = None if plan.fits else advise(config, model, device)
    print(plan_table(plan, model, name))
    if options.json is not None:
        write_json(options.json, plan_data(plan, model, name, advice))
    if advice is not None:
        raise PlanError(advice_text(plan, advice))


def _device(options: argparse.Namespace) -> Device:
    if options.device_gib is not None:
        if not 0 < options.device_gib < math.inf:
            raise ConfigError(f"--device-gib {options.device_gib:g}: the GiB of a GPU, more than 0")
        return Device(f"a GPU of {options.device_gib:g} GiB", int(options.device_gib * GIB))
    if options.device is not None:
        return named_device(options.device)
    try:
        return device_here()
    except InstallationError as error:
        raise InstallationError(f"{error} To plan for another machine's, name it: --device a100-80gb") from error
