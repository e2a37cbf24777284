"""`primezero play`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.printable import printable
from launch.quiet_start import quiet_start
from shared.config import Config
from shared.config_file import load_config
from shared.episodes import Task
from shared.errors import ConfigError

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
_HELP = """\
p=101 x=7            find y (deduction)         propose deduction   make a problem, and solve it
p=101 y=29           find x (abduction)         propose abduction
x=3 y=5              find p (induction)         propose induction
quit, or Ctrl-D
"""


def add_play(commands: Any) -> None:
    """Add the `play` command to the parser's `commands`."""
    play = commands.add_parser(
        "play",
        help="have a model solve and propose problems",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    from launch.play.player import checked_chat

    if options.samples < 1:
        raise ConfigError(f"--samples {options.samples}: the number of attempts, at least 1")
    if options.temperature is not None and not 0 <= options.temperature <= 2:
        raise ConfigError(f"--temperature {options.temperature:g}: from 0, which is greedy, to 2")
    if options.samples > 1 and options.temperature == 0:
        raise ConfigError("--samples with --temperature 0 would give the same answer again and again")
    request = _request(options)
    config = load_config(options.config or model_config(options.model), overrides)
    model = config.model.model_copy(update={"path": options.model.resolve()})
    config = config.model_copy(update={"model": model})
    requests = _lines() if request is None else [request]
    _serve(options, config, checked_chat(options.model, config), requests)


def _request(options: argparse.Namespace) -> Any:
    """What the options ask for; None where nothing."""
    from launch.play.asking import Propose, Solve, parse_numbers

    given = {name: getattr(options, name) for name in ("p", "x", "y") if getattr(options, name) is not None}
    if options.propose is not None and given:
        raise ConfigError("--propose makes a problem of its own: leave --p, --x and --y out")
    if options.propose is not None:
        return Propose(Task(options.propose))
    if not given:
        return None
    request = Solve(**{name: parse_numbers(name, text) for name, text in given.items()})
    return request if request.task else None


def _serve(options: argparse.Namespace, config: Config, chat: Any, requests: Iterable[Any]) -> None:
    """Answer on an engine, which has ended when this returns or raises. Between requests no event loop runs."""
    from launch.play.asking import Solve, pose
    from launch.play.player import Player
    from rollout.worker import start_engine

    sampled = config.sampling.temperature if options.samples > 1 else 0.0
    temperature = sampled if options.temperature is None else options.temperature
    if isinstance(requests, list) and isinstance(requests[0], Solve):
        pose(config, requests[0])  # before anything starts
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # a screen that is read has no room for more
    with asyncio.Runner() as runner:
        print("starting the engine", file=sys.stderr, flush=True)
        with quiet_start():
            engine = runner.run(start_engine(config))
        try:
            player = Player(config, engine, chat, samples=options.samples, temperature=temperature)
            for request in requests:
                with _told(interactive=not isinstance(requests, list)):
                    turns = runner.run(player.answer(request))
                    show = _json if options.json else _text
                    print(show(turns), flush=True)
        finally:
            runner.run(engine.shutdown())


def _lines() -> Iterator[Any]:
    """Requests typed by a person, or piped in. What is not understood is said, and the next one read."""
    from launch.play.asking import parse_line

    typed = sys.stdin.isatty()
    if typed:
        print(_HELP, file=sys.stderr, end="")
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            return
        if line in ("quit", "exit"):
            return
        if line == "help":
            print(_HELP, file=sys.stderr, end="")
        elif line:
            with _told(interactive=True):
                yield parse_line(line)


@contextlib.contextmanager
def _told(*, interactive: bool) -> Iterator[None]:
    """Where requests follow each other, one that cannot be is told about, and is not the end."""
    try:
        yield
    except ConfigError as error:
        if not interactive:
            raise
        print(error, file=sys.stderr)


def _json(turns: Sequence[Any]) -> str:
    return json.dumps({"turns": [asdict(turn) for turn in turns]})


def _text(turns: Sequence[Any]) -> str:
    return "\n".join(line for turn in turns for line in _turn_lines(turn))


def _turn_lines(turn: Any) -> Iterator[str]:
    yield f"[{turn.role}, {turn.task}]"
    yield _indented(turn.prompt)
    for response in turn.responses:
        cut = ", cut by the length limit" if response.truncated else ""
        yield f"-> {response.verdict}, {len(response.token_ids)} tokens, log-probability {response.logprob:.3f}{cut}"
        yield _indented(printable(response.text))
    if turn.accepted is not None and len(turn.responses) > 1:
        right = sum(response.verdict == "correct" for response in turn.responses)
        yield f"solved by {right} of {len(turn.responses)}"
    if turn.accepted is not None and all(response.verdict != "correct" for response in turn.responses):
        yield f"{turn.accepted} would have been accepted"


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines() or [""])
