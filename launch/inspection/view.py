"""Episodes on a terminal, and as plain data. Whatever a model wrote is made printable first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.inspection.selection import episode_name
from launch.printable import one_line, printable
from launch.recorded_episodes import RecordedEpisode
from launch.token_text import TokenText
from shared.episodes import Verdict

_HEADS = ("episode", "task", "verdict", "reward", "logprob", "response")
_NUMBERS = ("reward", "logprob")
_STYLES = {Verdict.VALID: "green", Verdict.CORRECT: "green", Verdict.UNPARSABLE: "red"}
_OTHER_STYLE = "yellow"
_SPACE = "␣"  # a token may begin or end with it


def show_list(console: Console, episodes: Iterable[RecordedEpisode], text: TokenText) -> None:
    """A line for each episode: on a terminal as much of it as fits, elsewhere all."""
    fits = console.is_terminal
    listed = [(_row(each, text), _style(each)) for each in episodes]  # not the episodes, which may be a whole run's
    widths = [max(map(len, column)) for column in zip(_HEADS, *(row for row, _ in listed), strict=True)]

    def line(row: Sequence[str]) -> list[str]:
        return [
            f"{cell:>{width}}" if name in _NUMBERS else f"{cell:<{width}}"
            for name, cell, width in zip(_HEADS[:-1], row[:-1], widths[:-1], strict=True)
        ] + [row[-1]]

    def show(line: Text) -> None:
        console.print(line, no_wrap=True, overflow="ellipsis" if fits else "ignore", crop=fits)

    show(Text("  ".join(line(_HEADS)), style="bold"))
    for row, style in listed:
        name, task, verdict, *rest = line(row)
        show(Text.assemble(f"{name}  {task}  ", (verdict, style), "  ", "  ".join(rest)))


def show_full(console: Console, episodes: Iterable[RecordedEpisode], text: TokenText, *, tokens: bool) -> None:
    """All of each episode, its tokens one by one where they are asked for."""
    for each in episodes:
        console.print(_full(each, text, tokens=tokens))


def episode_data(each: RecordedEpisode, text: TokenText) -> dict[str, Any]:
    """Everything about an episode as plain data: texts as they are, log-probabilities in nats."""
    episode = each.episode
    response = episode.response_ids.tolist()
    return {
        "episode": episode_name(each),
        "step": each.step,
        "ticket": {"lineage": each.ticket.lineage, "batch": each.ticket.batch, "index": each.ticket.index},
        "fate": each.fate,
        "role": str(episode.role),
        "task": str(episode.task),
        "verdict": str(episode.verdict),
        "reward": episode.reward,
        "reason": each.reason,
        "problem": each.problem,
        "accepted": each.accepted,
        "solve_rate": each.solve_rate,
        "truncated": episode.truncated,
        "prompt": text.text(episode.prompt_ids.tolist()),
        "response": text.text(response),
        "tokens": [
            {"id": token, "text": piece, "logprob": logprob, "version": version}
            for token, piece, logprob, version in zip(
                response, text.pieces(response), episode.behaviour_logprobs.tolist(), _versions(each), strict=True
            )
        ],
    }


def _row(each: RecordedEpisode, text: TokenText) -> tuple[str, ...]:
    """As `_HEADS` names the cells."""
    episode = each.episode
    return (
        episode_name(each),
        str(each.task),
        str(episode.verdict),
        f"{episode.reward:+.2f}",
        f"{_mean_logprob(each):.2f}",
        one_line(text.text(episode.response_ids.tolist())),
    )


def _full(each: RecordedEpisode, text: TokenText, *, tokens: bool) -> RenderableType:
    episode = each.episode
    facts = [
        printable(each.reason),
        f"attempts on {one_line(each.problem)}: solve rate {each.solve_rate:.3g}; {each.fate}",
        f"{len(episode.response_ids)} tokens, mean log-probability {_mean_logprob(each):.3f} nats, weight "
        f"{_version_range(each)}",
    ]
    parts: list[RenderableType] = [
        Text.assemble(
            (f"{each.role}, {each.task}: ", "bold"),
            (str(episode.verdict), f"bold {_style(each)}"),
            (f", reward {episode.reward:+.3f}", "bold"),
        ),
        *map(Text, facts),
        _box("prompt", text.text(episode.prompt_ids.tolist())),
        _box("response", text.text(episode.response_ids.tolist())),
    ]
    if tokens:
        parts.append(_tokens(each, text))
    return Panel(Group(*parts), title=Text(episode_name(each), style="bold"), title_align="left", border_style="dim")


def _box(title: str, text: str) -> Panel:
    return Panel(Text(printable(text)), title=title, title_align="left", border_style="dim")


def _tokens(each: RecordedEpisode, text: TokenText) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("#", "id", "logprob", "probability", "version"):
        table.add_column(name, justify="right")
    table.add_column("token", overflow="fold")
    response = each.episode.response_ids.tolist()
    rows = zip(response, each.episode.behaviour_logprobs.tolist(), _versions(each), text.pieces(response), strict=True)
    for index, (token, logprob, version, piece) in enumerate(rows):
        shown = Text(one_line(piece).replace(" ", _SPACE))
        table.add_row(str(index), str(token), f"{logprob:.3f}", f"{math.exp(logprob):.3f}", str(version), shown)
    return table


def _versions(each: RecordedEpisode) -> Sequence[int]:
    return [span.version for span in each.episode.spans for _ in range(span.start, span.end)]


def _version_range(each: RecordedEpisode) -> str:
    versions = _versions(each)
    first, last = min(versions), max(versions)
    return f"version {first}" if first == last else f"versions {first} to {last}"


def _mean_logprob(each: RecordedEpisode) -> float:
    return float(each.episode.behaviour_logprobs.mean())


def _style(each: RecordedEpisode) -> str:
    """The colour of its verdict."""
    return _STYLES.get(each.episode.verdict, _OTHER_STYLE)
