"""A start's private folder, and with it all that its processes hold on this machine: nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil

from launch.leftovers import FOLDER_PREFIX, Leftovers, remove
from launch.reaper import LOG_FILE, Reaper
from shared.errors import ConfigError, PrimezeroError

RECORD_FILE = "leftovers.json"
# A socket's path has 107 bytes at most; Ray's, below the temporary folder, take up to 87 of them.
_LONGEST_TEMPORARY = 20


def check_temporary_folder() -> Path:
    """The folder for temporary files. ConfigError where no socket can be below it: too long, or not ASCII."""
    folder = Path(tempfile.gettempdir())
    if not str(folder).isascii():
        raise ConfigError(
            f"the folder for temporary files, {str(folder)!r}, has other letters than ASCII's, which sockets below it "
            "cannot have: name another one, as in TMPDIR=/tmp primezero train ..."
        )
    if len(os.fsencode(folder)) > _LONGEST_TEMPORARY:
        raise ConfigError(
            f"sockets below the folder for temporary files, {folder}, would have too long a path: name a shorter one, "
            "as in TMPDIR=/tmp primezero train ..."
        )
    return folder


class PrivateFolder:
    """What is held is kept on record in the run's folder; see `private_folder`.

    machine: another than the launcher's, where an actor of Ray's has this folder; its record has the machine's name,
    since machines may share the run's folder
    """

    def __init__(self, run_folder: Path, machine: str = "") -> None:
        # Short, for the sockets in it.
        self.path = Path(tempfile.gettempdir()) / f"{FOLDER_PREFIX}{secrets.token_hex(4)}"
        self._record = run_folder / _of(machine, RECORD_FILE)
        self._held = Leftovers.of(self.path)
        self._held.write(self._record)
        self._reaper = Reaper(self._record, self.path, run_folder / _of(machine, LOG_FILE), apart=bool(machine))

    def note(self, used: Collection[Path]) -> None:
        """Have the shared memory that the start's processes use on record; see to it that there is a reaper."""
        held = Leftovers.of(self.path, used)
        if held != self._held:
            self._held = held
            with contextlib.suppress(OSError):  # a full disk ends no run: the reaper looks for itself, too
                held.write(self._record)
        self._reaper.keep_alive()

    def remove(self) -> None:
        """End and remove everything. The reaper goes last."""
        if staying := remove(self._held):
            print(f"{_cannot_be_killed(staying)}; the next start of this run tries again", flush=True)
        else:
            self._record.unlink(missing_ok=True)
        self._reaper.dismiss()


@contextlib.contextmanager
def private_folder(run_folder: Path) -> Iterator[PrivateFolder]:
    """A folder for this start of the run alone: short, private, empty; processes of the start have it in their mark.

    Whatever happens, within seconds nothing of it is left: no process, no shared memory, no file. At the launcher's
    death a reaper sees to that, and if that one is killed too, the run's next start (`remove_leftovers`).
    """
    folder = PrivateFolder(run_folder)
    try:
        try:
            folder.path.mkdir(mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"cannot make a folder in {folder.path.parent}: {error.strerror}; name another one by TMPDIR"
            ) from error
        yield folder
    finally:
        folder.remove()


def remove_leftovers(run_folder: Path, machine: str = "") -> None:
    """Remove what is on record of an earlier start of the run, which has ended.

    Raises PrimezeroError when one of its processes cannot be killed.
    """
    record = run_folder / _of(machine, RECORD_FILE)
    left = Leftovers.read(record)
    if left is not None and (staying := remove(left)):
        raise PrimezeroError(
            f"{_cannot_be_killed(staying)}, which an earlier start of the run in {run_folder} left: is a device or a "
            "file system stuck? Two starts of a run must not share a machine"
        )
    record.unlink(missing_ok=True)


def _of(machine: str, file: str) -> str:
    stem, dot, ending = file.rpartition(".")
    return f"{stem}-{machine}{dot}{ending}" if machine else file


def _cannot_be_killed(processes: Collection[psutil.Process]) -> str:
    return f"a process cannot be killed (pid {', '.join(str(p.pid) for p in processes)})"
