"""`primezero completion`: a script that teaches a shell the commands, their options, and every configuration key."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from launch.help_format import HelpFormatter
from shared.config_file import known_keys

SHELLS = ("bash", "zsh", "fish", "tcsh")

_DESCRIPTION = """\
Print a completion script for a shell: commands, options, folders, and the configuration keys.
"""
_EXAMPLES = """\
examples:
  primezero completion bash > ~/.local/share/bash-completion/completions/primezero
  primezero completion zsh > ~/.zfunc/_primezero
  primezero completion fish > ~/.config/fish/completions/primezero.fish
"""


def add_completion(commands: Any, parser: Callable[[], argparse.ArgumentParser], configured: Collection[str]) -> None:
    """Add the `completion` command to `commands`.

    parser: makes the whole parser anew; configured: the commands that configuration keys can follow
    """
    completion = commands.add_parser(
        "completion",
        help="print a completion script for a shell",
        formatter_class=HelpFormatter,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    completion.add_argument("shell", choices=SHELLS)

    def command(options: argparse.Namespace, _: Sequence[str]) -> None:
        print(completion_script(parser(), options.shell, configured))

    completion.set_defaults(command=command)


def completion_script(parser: argparse.ArgumentParser, shell: str, configured: Collection[str]) -> str:
    """The script. It knows all options by heart: nothing is started to complete a word."""
    import shtab

    for name, command in all_commands(parser).items():
        for action in command._actions:
            if action.type is Path:
                folder = "FOLDER" in str(action.metavar) or action.dest in ("folder", "out")
                action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]
        if name in configured:
            for key, description in known_keys().items():
                command.add_argument(f"--{key}", help=description.replace("%", "%%"))
    script: str = shtab.complete(parser, shell=shell)
    return script


def all_commands(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every parser by its words, those of commands in commands too; the whole one by none."""
    found = {name: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                found |= all_commands(command, f"{name} {word}".strip())
    return found
