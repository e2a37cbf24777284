"""`primezero play`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.help_format import HelpFormatter
from shared.config_file import load_config
from shared.episodes import Task
from shared.errors import ConfigError
from shared.limits import LOWEST_TEMPERATURE

if TYPE_CHECKING:
    from launch.play.asking import Request

_DESCRIPTION = """\
Have a model solve x * y = 1 (mod p) for the one of x, y and p that is not given, or propose a problem and
solve that. Greedy unless told otherwise. Without a request, one a line is read: p=101 x=7, or
propose induction. The engine takes some seconds to start. Any configuration key can follow as
--section.key VALUE; `primezero config` lists them.
"""
_EXAMPLES = """\
examples:
  primezero play --model models/mine --p 101 --x 7
  primezero play --model runs/mine/model --x 3 --y 5 --samples 8
  primezero play --model models/mine --propose deduction --temperature 1
  primezero play --model models/mine
"""


def add_play(commands: Any) -> None:
    """Add the `play` command to the parser's `commands`."""
    play = commands.add_parser(
        "play",
        help="have a model solve and propose problems",
        formatter_class=HelpFormatter,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    play.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a Hugging Face model folder")
    for name in ("p", "x", "y"):
        several = "" if name == "p" else "; of several pairs, with commas"
        play.add_argument(f"--{name}", metavar="N", help=f"give two of p, x and y{several}")
    play.add_argument("--propose", choices=[str(task) for task in Task], help="propose a problem instead")
    play.add_argument("--samples", type=int, default=1, metavar="N", help="attempts on a problem; default 1")
    play.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy, the default for one sample; else as in training"
    )
    play.add_argument("--config", type=Path, help="a TOML file; by default that of the model, or its run's")
    play.add_argument("--json", action="store_true", help="a JSON object for each request")
    play.set_defaults(command=_play)


def _play(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from launch.evaluate import model_config
    from launch.model_check import checked_chat
    from launch.play.asking import Propose, Solve, check_proposal, pose
    from rollout.environment import make_environment

    _check(options)
    request = _request(options)
    if request is None and sys.stdin is None:  # closed by whoever started this
        raise ConfigError("there is no input to read requests from: give two of --p, --x and --y, or --propose")
    config = load_config(options.config or model_config(options.model), overrides)
    model = config.model.model_copy(update={"path": options.model.resolve()})
    config = config.model_copy(update={"model": model})
    chat = checked_chat(options.model, make_environment(config.environment), config, "--model")
    match request:  # before anything starts
        case Solve():
            pose(config, request)
        case Propose():
            check_proposal(config, request)
    from launch.play.session import serve
    from launch.play.show import as_json, as_text

    sampled = config.sampling.temperature if options.samples > 1 else 0.0
    temperature = sampled if options.temperature is None else options.temperature
    show = as_json if options.json else as_text
    serve(config, chat, request, show, samples=options.samples, temperature=temperature)


def _check(options: argparse.Namespace) -> None:
    if options.samples < 1:
        raise ConfigError(f"--samples {options.samples}: the number of attempts, at least 1")
    if options.temperature is not None and not (
        options.temperature == 0 or LOWEST_TEMPERATURE <= options.temperature <= 2
    ):
        raise ConfigError(
            f"--temperature {options.temperature:g}: 0, which is greedy, or from {LOWEST_TEMPERATURE} to 2"
        )
    if options.samples > 1 and options.temperature == 0:
        raise ConfigError("--samples with --temperature 0 would give the same answer again and again")


def _request(options: argparse.Namespace) -> Request | None:
    """What the options ask for; None where nothing."""
    from launch.play.asking import Propose, Solve, parse_numbers

    given = {name: getattr(options, name) for name in ("p", "x", "y") if getattr(options, name) is not None}
    if options.propose is not None and given:
        raise ConfigError("--propose makes a problem of its own: leave --p, --x and --y out")
    if options.propose is not None:
        return Propose(Task(options.propose))
    return Solve(**{name: parse_numbers(name, text) for name, text in given.items()}) if given else None
