"""Turns on a terminal, and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from launch.folding import for_screen
from launch.play.player import Turn
from launch.printable import printable
from shared.episodes import Verdict

_INDENT = "   "


def as_json(turns: Sequence[Turn]) -> str:
    """An object on one line; texts as they are."""
    return json.dumps({"turns": [asdict(turn) for turn in turns]})


def as_text(turns: Sequence[Turn]) -> str:
    """For a person, folded to the terminal; what the model wrote is printable."""
    return for_screen("\n".join(line for turn in turns for line in _lines(turn)), sys.stdout, later=_INDENT)


def _lines(turn: Turn) -> Iterator[str]:
    yield f"[{turn.role}, {turn.task}]"
    yield _indented(turn.prompt)
    for response in turn.responses:
        cut = ", cut by the length limit" if response.truncated else ""
        yield f"-> {response.verdict}, {len(response.token_ids)} tokens, log-probability {response.logprob:.3f}{cut}"
        yield _indented(printable(response.text))
    if turn.accepted is None:
        return
    right = sum(response.verdict is Verdict.CORRECT for response in turn.responses)
    if len(turn.responses) > 1:
        yield f"solved by {right} of {len(turn.responses)}"
    if not right:
        yield f"{turn.accepted} would have been accepted"


def _indented(text: str) -> str:
    return "\n".join(f"{_INDENT}{line}" for line in text.splitlines() or [""])
