"""The words of a command line: which override the configuration, and what a word that nobody knows was meant to be."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence

from shared.config_file import meant_key

_OVERRIDE = re.compile(r"--[A-Za-z][\w-]*\.[^=]+(=.*)?", re.DOTALL)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words for the parser, and those that override the configuration: `--section.key VALUE`, wherever they are.

    What begins with -- is the value of nothing.
    """
    words: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not _OVERRIDE.fullmatch(word):
            words.append(word)
            continue
        overrides.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            overrides.append(rest.pop(0))
    return words, overrides


def refuse_unknown(command: argparse.ArgumentParser, unknown: Sequence[str], *, configured: bool) -> None:
    """End as a usage error of `command` if there are words that it does not know; with what they resemble.

    configured: whether configuration keys can follow the command
    """
    if not unknown:
        return
    name = unknown[0].partition("=")[0]
    known = difflib.get_close_matches(name, command._option_string_actions, n=1, cutoff=0.75)
    key = meant_key(name.lstrip("-").replace("-", "_").lower()) if configured else None
    meant = known[0] if known else f"--{key}" if key else None
    hint = f"; do you mean {meant}?" if meant else f"; `{command.prog} --help` lists what there is"
    command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
