"""A line per step, evaluation and restart, for a file or a pipe; and what a run came to, for its end."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from typing import Self

from launch.records import Record
from launch.supervisor import Restart
from learner.progress import Summary


class PlainDisplay:
    """Prints lines. steps: of the whole run; quiet: restarts alone."""

    def __init__(self, steps: int, *, quiet: bool = False) -> None:
        self._steps = steps
        self._quiet = quiet

    def __enter__(self) -> Self:
        self.say("starting Ray, the engine and the learner: some twenty seconds for a small model")
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def say(self, text: str) -> None:
        """Print lines about the run as a whole."""
        if not self._quiet:
            print(text, flush=True)

    def stopping(self) -> None:
        """Say that the run ends after this step. Called by a signal handler."""
        if sys.stdout is None:  # closed by whoever started this
            return
        # print() may be what was interrupted, and cannot be entered twice. Ctrl-C ends a reader, as `tee` is, too.
        with contextlib.suppress(OSError):
            os.write(1, b"stopping after this step; press Ctrl-C again to stop at once\n")

    def step(self, record: Record) -> None:
        self.say(self._step_line(record))

    def evaluation(self, record: Record) -> None:
        self.say(evaluation_line(record))

    def restart(self, restart: Restart) -> None:
        print(restart_line(restart), flush=True)

    def _step_line(self, record: Record) -> str:
        tasks, learner, phases = record["tasks"].values(), record["learner"], record["phases"]
        valid = [t["valid"] for t in tasks if t["valid"] is not None]
        entropy = math.nan if learner["entropy"] is None else learner["entropy"]  # as is recorded what is not finite
        return (
            f"step {record['step']:>4}/{self._steps}  "
            f"solver {_mean([t['accuracy'] for t in tasks]):.2f}  "
            f"valid proposals {_mean(valid):.2f}  "
            f"entropy {entropy:.3f}  "
            f"staleness {record['staleness_mean']:.2f}  "
            f"{sum(phases.values()):.2f} s (waiting {phases.get('wait_s', 0):.2f})"
        )


def restart_line(restart: Restart) -> str:
    """What ended, why, and what it goes on from."""
    origin = restart.origin
    start = f"step {origin.version}" if origin.version else "the beginning"
    goes_on = "" if origin.version is None else f" from {start}, lineage {origin.lineage}"
    when = f", in {restart.delay_s:g} s" if restart.delay_s else ""
    return (
        f"{restart.reason}; {restart.unit} is started again{goes_on}{when} "
        f"({restart.number} of at most {restart.limit} times)"
    )


def evaluation_line(record: Record) -> str:
    """An evaluation in a line."""
    tasks = "  ".join(f"{task} {result['accuracy']:.2f}" for task, result in record["tasks"].items())
    line = f"     evaluation at version {record['version']}: accuracy {record['accuracy']:.3f}  ({tasks})"
    held_out = record["held_out_accuracy"]
    return line if held_out is None else f"{line}  held out {held_out:.3f}"


def summary_lines(summary: Summary) -> list[str]:
    """What a run came to, for its end."""
    lines = [
        f"{summary.steps} steps, {summary.wall_s:.0f} s, {summary.episodes} episodes, "
        f"{summary.tokens_generated} tokens generated, {summary.weight_syncs} weight syncs, seed {summary.seed}",
        f"{'greedy accuracy':<16} before  after",
    ]
    for task, accuracy in summary.per_task.items():
        lines.append(f"{task:<16} {accuracy['before']:>6.3f} {accuracy['after']:>6.3f}")
    lines.append(
        f"{'mean':<16} {summary.accuracy_before:>6.3f} {summary.accuracy_after:>6.3f}"
        f"   (best {summary.accuracy_best:.3f})"
    )
    if summary.held_out_before is not None and summary.held_out_after is not None:
        lines.append(f"{'held out':<16} {summary.held_out_before:>6.3f} {summary.held_out_after:>6.3f}")
    return lines


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
