"""`primezero inspect`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from launch.help_format import HelpFormatter
from launch.recorded_episodes import RecordedEpisode, RecordedRun
from launch.run_records import known_config, read_run
from shared.episodes import Role, Task, Verdict
from shared.errors import ConfigError, PrimezeroError

_DESCRIPTION = """\
Browse the episodes of a run's journal: prompt, response, reward and its reason, log-probabilities. Without
an EPISODE, a line for each that fits the options; with one, all of it. A run may still be going.
"""
_EXAMPLES = """\
examples:
  primezero inspect runs/mine --step last
  primezero inspect runs/mine --role proposer --task induction --min-reward 0.5
  primezero inspect runs/mine --verdict unparsable --full --limit 3
  primezero inspect runs/mine 1/0/p --tokens
  primezero inspect runs/mine --step 1..2 --limit 0 --json

An episode is step/ticket/which: p is the proposal, 1, 2, ... the attempts on its problem.
"""


def add_inspect(commands: Any) -> None:
    """Add the `inspect` command to the parser's `commands`."""
    inspect = commands.add_parser(
        "inspect",
        help="browse the episodes of a run",
        formatter_class=HelpFormatter,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    inspect.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="the folder of a run")
    inspect.add_argument("episode", nargs="?", metavar="EPISODE", help="one of those that are listed, such as 12/3/p")
    inspect.add_argument("--step", metavar="STEPS", help="a training step, first..last, or last; by default all")
    inspect.add_argument("--role", choices=[str(role) for role in Role])
    inspect.add_argument("--task", choices=[str(task) for task in Task])
    verdicts = [str(verdict) for verdict in Verdict]
    inspect.add_argument("--verdict", choices=verdicts, metavar="VERDICT", help=f"one of {', '.join(verdicts)}")
    inspect.add_argument("--min-reward", type=float, metavar="R", help="those with at least this reward")
    inspect.add_argument("--max-reward", type=float, metavar="R", help="those with at most this reward")
    inspect.add_argument("--untrained", action="store_true", help="also what was dropped, or is of an open batch")
    inspect.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many; default 20, 0: all")
    inspect.add_argument("--full", action="store_true", help="all of each episode, not a line")
    inspect.add_argument("--tokens", action="store_true", help="all, and each token with its log-probability")
    inspect.add_argument("--json", action="store_true", help="all, as a JSON object a line; texts as they are")
    inspect.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="a model folder, where the run's own is gone")
    inspect.set_defaults(command=_inspect)


def _inspect(options: argparse.Namespace, _: Sequence[str]) -> None:
    if options.limit < 0:
        raise ConfigError(f"--limit {options.limit}: the number of episodes at most, 0 for all")
    run = read_run(options.folder)
    recorded = RecordedRun(run.folder, known_config(run))
    found = _found(options, recorded)
    if (first := next(found, None)) is None:
        raise PrimezeroError(f"no such episode in {options.folder}{_there_are(recorded)}")
    from launch.token_text import TokenText

    text = TokenText.of_run(run, options.tokenizer)
    _show(options, chain([first], found), text)


def _found(options: argparse.Namespace, run: RecordedRun) -> Iterator[RecordedEpisode]:
    from launch.inspection.selection import Selection, parse_steps, step_of_name

    steps = None if options.step is None else parse_steps(options.step, run)
    if options.episode is not None:
        steps = (step_of_name(options.episode),) * 2
    return Selection(
        steps=steps,
        episode=options.episode,
        role=options.role and Role(options.role),
        task=options.task and Task(options.task),
        verdict=options.verdict and Verdict(options.verdict),
        lowest=options.min_reward,
        highest=options.max_reward,
        untrained=options.untrained or options.episode is not None,
    ).of(run)


def _there_are(run: RecordedRun) -> str:
    if run.damaged:
        return ": its journal is damaged, from the beginning"
    if not run.steps:
        return ": no step was trained yet; --untrained shows what waits to be"
    return f": its trained steps are {run.steps[0]} to {run.steps[-1]}"


def _show(options: argparse.Namespace, found: Iterator[RecordedEpisode], text: Any) -> None:
    """What is found, up to the limit."""
    from launch.inspection.view import episode_data, show_full, show_list
    from launch.standard_output import console

    shown = islice(found, options.limit or None)
    if options.json:
        for each in shown:
            print(json.dumps(episode_data(each, text), ensure_ascii=True))
    else:
        output = console()
        with _paged(output):
            if options.full or options.tokens or options.episode is not None:
                show_full(output, shown, text, tokens=options.tokens)
            else:
                show_list(output, shown, text)
    if next(found, None) is not None:
        print(f"there are more than {options.limit}: narrow them down, or raise --limit (0: all)", file=sys.stderr)


@contextmanager
def _paged(console: Any) -> Iterator[None]:
    """Through the user's pager where a person reads; not where what is shown fits on the screen."""
    if not (console.is_terminal and sys.stdin is not None and sys.stdin.isatty()):
        yield
        return
    options = os.environ.setdefault("LESS", "FRX")
    with console.pager(styles="R" in options.upper()):  # without it less shows what colours are made of
        yield
