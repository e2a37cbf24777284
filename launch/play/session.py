"""One engine, and the requests that it answers, one after the other."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable, Iterator, Sequence

from launch.engine_noise import engine_noise
from launch.play.asking import Request, parse_line
from launch.play.player import Player, Turn
from rollout.chat import ChatTokenizer
from rollout.worker import start_engine
from shared.config import Config
from shared.errors import ConfigError

_HELP = """\
p=101 x=7            find y (deduction)         propose deduction   make a problem, and solve it
p=101 y=29           find x (abduction)         propose abduction
x=3 y=5              find p (induction)         propose induction
quit, or Ctrl-D
"""
Show = Callable[[Sequence[Turn]], str]


def serve(
    config: Config,
    chat: ChatTokenizer,
    request: Request | None,
    show: Show,
    *,
    samples: int,
    temperature: float,
) -> None:
    """Start an engine with `config.model`, answer, end it. Without a request, those that are read line by line.

    Between requests no event loop runs, so that Ctrl-C at the prompt is what it is elsewhere.
    """
    with asyncio.Runner() as runner, engine_noise() as noise:
        print("starting the engine", file=sys.stderr, flush=True)
        with noise.kept():
            engine = runner.run(start_engine(config))
        try:
            player = Player(config, engine, chat, samples=samples, temperature=temperature)

            def answer(asked: Request) -> None:
                print(show(runner.run(player.answer(asked))), flush=True)

            if request is not None:
                answer(request)
                return
            for line in _typed_lines():
                try:
                    answer(parse_line(line))
                except ConfigError as error:  # a slip is not the end
                    print(error, file=sys.stderr)
        finally:
            runner.run(engine.shutdown())


def _typed_lines() -> Iterator[str]:
    """What a person types, or what is piped in, up to `quit`; `help` is answered here."""
    typed = sys.stdin.isatty()
    if typed:
        print(_HELP, file=sys.stderr, end="")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # half a character is a slip like others
    prompt = "> " if typed and sys.stdout.isatty() else ""  # in a file it would be among the answers
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line in ("quit", "exit"):
            return
        if line == "help":
            print(_HELP, file=sys.stderr, end="")
        elif line:
            yield line
