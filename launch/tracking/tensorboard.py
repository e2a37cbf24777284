"""TensorBoard event files, by TensorBoard's own writer: no torch in the launcher."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoard:
    """Writes scalars into a folder. `folder`: made where it is not there."""

    def __init__(self, folder: Path) -> None:
        self._writer = EventFileWriter(str(folder))

    def rewind(self, version: int) -> bool:
        """Have readers forget what has been written of steps after `version`."""
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=version + 1, session_log=start))
        return True

    def log(self, version: int, values: Mapping[str, float]) -> None:
        """Write scalars of one version."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=version, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
