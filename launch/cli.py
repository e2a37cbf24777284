"""The `primezero` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path

from launch.bench.command import add_bench
from launch.command_words import refuse_unknown, split_overrides
from launch.completion import add_completion, all_commands
from launch.display import summary_lines
from launch.doctor.command import add_doctor
from launch.export.command import add_export
from launch.folding import for_screen
from launch.help_format import HelpFormatter
from launch.inspection.command import add_inspect
from launch.plan.command import add_plan
from launch.play.command import add_play
from launch.report.command import add_report
from launch.standard_output import reader_has_gone, show_what_can_be_shown, write_no_more
from launch.tiny_model import TinyModelSettings
from shared.config_file import known_keys, load_config
from shared.disk import is_full, reason
from shared.errors import ConfigError, DiskError, PrimezeroError, named
from shared.metrics import check_writable, write_json

_EVAL_DESCRIPTION = """\
Evaluate a model greedily on fixed problems: accuracy with its 95% interval (Wilson; for the mean
of the tasks, from theirs), next to tricks that need no skill; what training never sees, apart.
Any configuration key can follow as --section.key VALUE; `primezero config` lists them.
"""
_EVAL_EXAMPLES = """\
examples:
  primezero eval runs/mine/model --baseline-model models/tiny --json mine.json
  primezero eval models/some-instruct-model --bands 5..101,5..617 --samples 16 --problems 128

In the JSON, bands[i].trainable.all.tasks.deduction.model.accuracy is {value, low, high};
launch/evaluation_report.py describes every field.
"""
_TRAIN_DESCRIPTION = """\
Train by self-play, or go on with a run that has ended early. Any configuration key can follow as
--section.key VALUE; `primezero config` lists them.
"""
_TRAIN_EXAMPLES = """\
examples:
  primezero train --config launch/configs/cpu_demo.toml --model.path models/tiny --run.name mine
  primezero train --config launch/configs/cpu_demo.toml --model.path models/tiny --run.name mine --resume
  primezero train --config launch/configs/cpu_demo.toml --model.path models/tiny --learner.lr 5e-4
"""
_DESCRIPTION = """\
Self-play on prime inversion: one language model proposes problems, solves them, and learns from both.
"""
_EXAMPLES = """\
examples, of a run on the CPU from beginning to end:
  primezero doctor
  primezero init-model models/tiny --config launch/configs/cpu_demo.toml
  primezero train --config launch/configs/cpu_demo.toml --model.path models/tiny --run.name mine
  primezero report runs/mine
  primezero inspect runs/mine --step last
  primezero export runs/mine models/mine
  primezero play --model models/mine --p 13 --x 7

`primezero COMMAND --help` has more of each. The options of most commands go with configuration keys, as in
--learner.lr 5e-4, which `primezero config` lists. `primezero completion bash` makes a shell know them all.
"""
# Commands that configuration keys can follow, and those that have no use for one.
_CONFIGURED = ("train", "eval", "init-model", "plan", "play", "doctor", "config")
_PLAIN = ("audit", "report", "inspect", "export", "completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. A PrimezeroError is shown in a line, without a traceback."""
    words, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
    show_what_can_be_shown()
    parser = _parser()
    options, unknown = parser.parse_known_args(words)
    refuse_unknown(all_commands(parser)[options.name], unknown, configured=options.name in _CONFIGURED)
    try:
        if overrides and options.name in _PLAIN:
            raise ConfigError(f"{overrides[0]}: `primezero {options.name}` has no configuration; see its --help")
        options.command(options, overrides)
        if sys.stdout is not None:  # closed by whoever started this
            sys.stdout.flush()
    except BrokenPipeError:
        if not reader_has_gone():
            raise
        write_no_more()
        return 141
    except PermissionError as error:
        if error.filename is None:  # no place that a user has named
            raise
        return _fail(
            ConfigError(f"cannot use {error.filename}: {reason(error)}; name a place that is yours, or is open to you")
        )
    except OSError as error:
        if not is_full(error):
            raise
        write_no_more()
        where = error.filename or "what there is to say"
        print(f"primezero: DiskError: cannot write {where}: {reason(error)}; make room there", file=sys.stderr)
        return DiskError.exit_code
    except PrimezeroError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("primezero: interrupted", file=sys.stderr)
        return 130
    return 0


def _fail(error: PrimezeroError) -> int:
    """Show an error in a line; the exit code."""
    print(for_screen(f"primezero: {named(error)}", sys.stderr), file=sys.stderr)
    return error.exit_code


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = load_config(options.config, overrides)
    from launch.train import train

    summary = train(config, resume=options.resume)
    print("\n" + "\n".join(summary_lines(summary)))
    print(f"records and the trained model are in {config.run_folder}")


def _evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from launch.evaluate import evaluate_models, model_config, parse_bands
    from launch.evaluation_table import table

    if options.temperature is not None and not options.samples:
        raise ConfigError("--temperature is for --samples: greedy decoding has none")
    if options.json is not None:
        check_writable(options.json)
    config_file = options.config or model_config(options.folder)
    if config_file is not None and options.config is None:
        print(f"using the configuration that the model was trained with, {config_file}", file=sys.stderr)
    shorthands = {
        "environment.evaluation_problems_per_task": options.problems,
        "sampling.temperature": options.temperature,
    }
    spelled = [f"--{key}={value}" for key, value in shorthands.items() if value is not None]
    report = evaluate_models(
        load_config(config_file, [*spelled, *overrides]),
        options.folder,
        baseline_model=options.baseline_model,
        bands=parse_bands(options.bands) if options.bands is not None else (),
        samples=options.samples,
    )
    print(table(report))
    if options.json is not None:
        write_json(options.json, asdict(report))


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


def _audit(options: argparse.Namespace, _: Sequence[str]) -> None:
    from launch.run_folder import is_going
    from learner.audit import audit

    found = audit(options.folder)
    for name, value in asdict(found).items():
        reasons = "  ".join(f"{reason} {count}" for reason, count in value.items()) if name == "dropped" else value
        print(f"{name:<13} {reasons or 0}")
    if not found.sound:
        going = "; it is still going: audit it once it has ended" if is_going(options.folder) else ""
        raise PrimezeroError(f"the run in {options.folder} has {', '.join(found.faults)}{going}")


def _config(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if overrides:
        load_config(None, overrides)
    if options.markdown:
        from launch.configuration_page import configuration_page

        print(configuration_page(), end="")
        return
    width = max(map(len, known_keys()))
    for key, description in known_keys().items():
        print(f"--{key:<{width}}  {description}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="primezero",
        formatter_class=HelpFormatter,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"primezero {version('primezero')}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train by self-play",
        formatter_class=HelpFormatter,
        description=_TRAIN_DESCRIPTION,
        epilog=_TRAIN_EXAMPLES,
    )
    train.add_argument("--config", type=Path, help="a TOML file")
    train.add_argument(
        "--resume",
        action="store_true",
        help="fail unless there is a run to resume; without it, one is resumed where there is one",
    )
    train.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "eval",
        help="evaluate a model",
        formatter_class=HelpFormatter,
        description=_EVAL_DESCRIPTION,
        epilog=_EVAL_EXAMPLES,
    )
    evaluate.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="a Hugging Face model folder")
    evaluate.add_argument(
        "--config",
        type=Path,
        help="a TOML file; by default the one that comes with the model, or with the run that it lies in",
    )
    evaluate.add_argument("--bands", help="ranges of primes, as in 2..13,5..101; by default the configuration's")
    evaluate.add_argument("--samples", type=int, default=0, metavar="K", help="also pass@1 to pass@K, by sampling")
    evaluate.add_argument("--temperature", metavar="T", help="of the samples; short for --sampling.temperature")
    evaluate.add_argument(
        "--problems", metavar="N", help="per task, at most; short for --environment.evaluation_problems_per_task"
    )
    evaluate.add_argument(
        "--baseline-model", type=Path, metavar="FOLDER", help="another model, for comparison on the same problems"
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    evaluate.set_defaults(command=_evaluate)

    init_model = commands.add_parser(
        "init-model",
        help="make the tiny model for the CPU",
        description="Make a Qwen2 model of about 0.15M parameters with its own tokenizer and a short supervised warm "
        "start. It stands in for an Instruct model where there is no GPU.",
        epilog="example:\n  primezero init-model models/tiny-1 --config launch/configs/cpu_demo.toml --run.seed 1",
        formatter_class=HelpFormatter,
    )
    init_model.add_argument("folder", type=Path, help="where the model goes")
    init_model.add_argument("--config", type=Path, help="a TOML file; its environment and seed are used")
    for field in fields(TinyModelSettings):
        init_model.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            metavar="X" if isinstance(field.default, float) else "N",
            help="default %(default)s",
        )
    init_model.set_defaults(command=_init_model)

    add_report(commands)
    add_inspect(commands)
    add_export(commands)
    add_play(commands)

    audit = commands.add_parser(
        "audit",
        help="account for every acknowledged ticket of a run",
        description="What became of every closed ticket that the learner acknowledged, told from the run's journal: "
        "trained on once, dropped on the record, or still open. Fails when one is lost, or trained on twice, "
        "or when metrics.jsonl has other steps than the journal.",
        epilog="example:\n  primezero audit runs/mine",
        formatter_class=HelpFormatter,
    )
    audit.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="the folder of a run that has ended")
    audit.set_defaults(command=_audit)

    add_doctor(commands)
    add_plan(commands)
    add_bench(commands)

    config = commands.add_parser(
        "config",
        help="list every configuration key",
        description="List every configuration key with a word on it. Keys that follow are checked.",
        epilog="example:\n  primezero config --learner.lr 5e-4",
        formatter_class=HelpFormatter,
    )
    config.add_argument(
        "--markdown", action="store_true", help="with values and defaults, as docs/configuration.md has"
    )
    config.set_defaults(command=_config)
    add_completion(commands, _parser, _CONFIGURED)
    return parser


if __name__ == "__main__":
    sys.exit(main())
