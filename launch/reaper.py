"""A process beside the launcher that outlives it, and removes what it leaves when it is killed.

Children that die with their parent do not suffice: Ray's helpers stay for minutes, and shared memory, sockets and
folders stay for good. Light: it waits beside every run, and must be there before anything else is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from launch.leftovers import Leftovers, remove
from launch.marked_processes import VARIABLE

LOG_FILE = "logs/reaper.log"
GOODBYE_S = 5.0
_APART = "apart"
_ROOT = Path(__file__).parents[1]


class Reaper:
    """The launcher's hold on its reaper: a pipe, whose end says without a word that the launcher is dead.

    record: of what is held (`Leftovers`); folder: the private folder that it is of; log: takes what the reaper says
    apart: whether it has to be the child of a child: Ray, when it ends an actor, kills the children of that
    """

    def __init__(self, record: Path, folder: Path, log: Path, *, apart: bool = False) -> None:
        self._command = [sys.executable, "-m", "launch.reaper", str(record), str(folder), *([_APART] if apart else [])]
        self._log = log
        self._process = self._start()

    def keep_alive(self) -> None:
        """Start another one if it has been killed."""
        if self._process.poll() is not None:
            self._close()
            self._process = self._start()

    def dismiss(self) -> None:
        """There is nothing to be removed any more: let it go."""
        with contextlib.suppress(BrokenPipeError):
            self._input.write(b".")
            self._input.flush()
        self._close()
        try:
            self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:  # stopped, for one
            self._process.kill()
            self._process.wait(GOODBYE_S)

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _start(self) -> subprocess.Popen[bytes]:
        # With the mark of another run it would be taken for a part of that one.
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=_ROOT,  # finds this very code, and keeps no folder of the user's busy
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,  # the launcher's own would keep whoever reads it waiting
                stderr=log,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )

    def _close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()


def main(arguments: Sequence[str]) -> None:
    """Wait for the launcher's end, and remove what it leaves unless it says that it has done so."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    record, folder = map(Path, arguments[:2])
    if arguments[2:] == [_APART] and (child := os.fork()):
        os.waitpid(child, 0)
        return
    if sys.stdin.buffer.read(1):
        return
    left = Leftovers.read(record)
    if left is None or left.folder != str(folder):  # the run's next start has been quicker
        left = Leftovers.of(folder)
    print(f"the launcher is gone: removing what it left, {folder} and what belongs to it", flush=True)
    for process in remove(left):
        print(f"process {process.pid} cannot be killed; the next start of the run will try again", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
