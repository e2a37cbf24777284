"""The `primezero` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from launch.tiny_model import TinyModelSettings
from shared.config import known_keys, load_config
from shared.errors import PrimezeroError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. A PrimezeroError is shown as its message, without a traceback."""
    options, overrides = _parser().parse_known_args(arguments)
    try:
        options.command(options, overrides)
    except PrimezeroError as error:
        print(f"primezero: {error}", file=sys.stderr)
        return 1
    return 0


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = load_config(options.config, overrides)
    from launch.train import train

    summary = train(config)
    print(
        f"\n{summary.steps} steps, {summary.wall_s:.0f} s, {summary.episodes} episodes, "
        f"{summary.tokens_generated} tokens generated, {summary.weight_syncs} weight syncs, seed {summary.seed}"
    )
    print(f"{'greedy accuracy':<16} before  after")
    for task, accuracy in summary.per_task.items():
        print(f"{task:<16} {accuracy['before']:>6.3f} {accuracy['after']:>6.3f}")
    print(
        f"{'mean':<16} {summary.accuracy_before:>6.3f} {summary.accuracy_after:>6.3f}"
        f"   (best {summary.accuracy_best:.3f})"
    )
    print(f"records and the trained model are in {config.run_folder}")


def _init_model(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = load_config(options.config, overrides)
    from launch.tiny_model import make_tiny_model

    settings = TinyModelSettings(**{f.name: getattr(options, f.name) for f in fields(TinyModelSettings)})

    def progress(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"warm start {step:>4}/{settings.steps}  loss {loss:.3f}", flush=True)

    report = make_tiny_model(
        options.folder, config.environment, settings=settings, seed=config.run.seed, progress=progress
    )
    tasks = "  ".join(f"{task} {result.accuracy:.2f}" for task, result in report.evaluation.tasks.items())
    print(f"{options.folder}: {report.parameters} parameters, vocabulary {report.vocabulary}, {report.seconds:.0f} s")
    print(f"greedy accuracy {report.evaluation.accuracy:.3f}  ({tasks})")


def _config(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if overrides:
        load_config(None, overrides)
    width = max(map(len, known_keys()))
    for key, description in known_keys().items():
        print(f"--{key:<{width}}  {description}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="primezero", description="Self-play on prime inversion, split and streaming.")
    parser.add_argument("--version", action="version", version=f"primezero {version('primezero')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train by self-play",
        description="Train by self-play. Any configuration key can follow as --section.key VALUE; "
        "`primezero config` lists them.",
        epilog="example: primezero train --config launch/configs/cpu_demo.toml --run.name mine --learner.lr 5e-4",
    )
    train.add_argument("--config", type=Path, help="a TOML file")
    train.set_defaults(command=_train)

    init_model = commands.add_parser(
        "init-model",
        help="make the tiny model for the CPU",
        description="Make a Qwen2 model of about 0.15M parameters with its own tokenizer and a short supervised warm "
        "start. It stands in for an Instruct model where there is no GPU.",
        epilog="example: primezero init-model models/tiny --config launch/configs/cpu_demo.toml --run.seed 1",
    )
    init_model.add_argument("folder", type=Path, help="where the model goes")
    init_model.add_argument("--config", type=Path, help="a TOML file; its environment and seed are used")
    for field in fields(TinyModelSettings):
        init_model.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help="default %(default)s",
        )
    init_model.set_defaults(command=_init_model)

    config = commands.add_parser("config", help="list every configuration key")
    config.set_defaults(command=_config)
    return parser


if __name__ == "__main__":
    sys.exit(main())
