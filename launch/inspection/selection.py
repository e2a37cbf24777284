"""Which of a run's episodes are wanted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from launch.recorded_episodes import RecordedEpisode, RecordedRun
from shared.episodes import Role, Task, Verdict
from shared.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What an episode has to be; None: anything.

    steps: [first, last] training steps; episode: a name as `episode_name` makes it
    lowest, highest: of the reward; untrained: those that were dropped or whose batch is open are wanted too
    """

    steps: tuple[int, int] | None = None
    episode: str | None = None
    role: Role | None = None
    task: Task | None = None
    verdict: Verdict | None = None
    lowest: float | None = None
    highest: float | None = None
    untrained: bool = False

    def of(self, run: RecordedRun) -> Iterator[RecordedEpisode]:
        """The run's episodes that are wanted, by step and ticket."""
        steps = None if self.steps is None else range(self.steps[0], self.steps[1] + 1)
        return (each for each in run.all(steps, untrained=self.untrained) if self._wants(each))

    def _wants(self, each: RecordedEpisode) -> bool:
        return (
            (self.episode is None or self.episode == episode_name(each))
            and (self.role is None or self.role is each.role)
            and (self.task is None or self.task is each.task)
            and (self.verdict is None or self.verdict is each.episode.verdict)
            and (self.lowest is None or each.episode.reward >= self.lowest)
            and (self.highest is None or each.episode.reward <= self.highest)
        )


def episode_name(each: RecordedEpisode) -> str:
    """Step, ticket, and p for the proposal or the attempt's number: 12/3/p, 12/3/1."""
    which = "p" if each.attempt is None else str(each.attempt + 1)
    return f"{each.step}/{each.ticket.index}/{which}"


def step_of_name(name: str) -> int:
    """The step of an episode's name; ConfigError when it is none."""
    match = re.fullmatch(r"([0-9]{1,9})/[0-9]{1,9}/(p|[0-9]{1,9})", name)
    if match is None:
        raise ConfigError(f"{name!r} is not an episode: write step/ticket/which as listed, such as 12/3/p or 12/3/1")
    return int(match[1])


def parse_steps(text: str, run: RecordedRun) -> tuple[int, int]:
    """From "12", "5..9" or "last"; ConfigError when it is anything else, or when no step was trained."""
    if text == "last":
        if not run.steps:
            raise ConfigError("--step last: no step was trained yet")
        return run.steps[-1], run.steps[-1]
    match = re.fullmatch(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise ConfigError(f"--step {text}: write a training step, first..last, or last")
    return first, last
