"""What one start of a run holds on this machine, on record, so that it can be removed when nobody is left to do it.

Light: the reaper, which waits beside every run, imports it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import psutil

from launch import marked_processes, segments
from shared.metrics import replace_file

FOLDER_PREFIX = "primezero-"
KILLED_S = 30.0
_POLL_S = 0.05


class Leftovers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """boot: of the machine that holds all this
    folder: the start's private folder, a path that the marks of its processes begin with
    segments: inodes of shared-memory files, by path, that its processes have been seen to use
    """

    boot: str
    folder: str
    segments: dict[str, int]

    @classmethod
    def of(cls, folder: Path, used: Iterable[Path] = ()) -> Leftovers:
        """What is held now; a file that is gone by now is not."""
        inodes = {}
        for path in used:
            with contextlib.suppress(OSError):
                inodes[str(path)] = path.lstat().st_ino
        return cls(_boot(), str(folder), inodes)

    def write(self, record: Path) -> None:
        """Put this on record, in the place of what was."""
        replace_file(record, msgspec.json.encode(self).decode())

    @classmethod
    def read(cls, record: Path) -> Leftovers | None:
        """What is on record; None where nothing is that could be read."""
        try:
            return msgspec.json.decode(record.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError):
            return None


def remove(left: Leftovers) -> list[psutil.Process]:
    """Kill the processes, then remove segments and folder: those that are ours, and that nobody else uses.

    May be done by several at once. Returns the processes that could not be killed; what they hold stays.
    """
    staying: list[psutil.Process] = []
    if left.boot == _boot():  # nothing else outlives a boot, and a process id or an inode would be somebody else's
        seen, staying = _kill(left.folder)
        held = {**Leftovers.of(Path(left.folder), seen).segments, **left.segments}
        _remove_segments(held)
    if not staying:
        _remove_folder(Path(left.folder))
    return staying


def _kill(folder: str) -> tuple[set[Path], list[psutil.Process]]:
    """The segments that its processes were using, and those processes that do not end."""
    everyone: set[psutil.Process] = set()
    used: set[Path] = set()
    deadline = time.monotonic() + KILLED_S
    while True:
        # Again and again: one that has been killed may have started another just before.
        marked = marked_processes.of_start(Path(folder))
        used |= segments.used_by(marked - everyone)  # killed, they cannot be asked any more
        everyone |= marked
        living = [process for process in everyone if marked_processes.lives(process)]
        if not living or time.monotonic() > deadline:
            return used, living
        for process in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_POLL_S)


def _remove_segments(held: dict[str, int]) -> None:
    there = {path for path in segments.existing() if str(path) in held} if held else set()
    for path in there - segments.used_by(psutil.process_iter()) if there else ():
        with contextlib.suppress(OSError):
            status = path.lstat()
            # A name may have been taken again by somebody else since.
            if status.st_ino == held[str(path)] and status.st_uid == os.getuid():
                path.unlink()


def _remove_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        status = folder.lstat()
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if folder.name.startswith(FOLDER_PREFIX) and ours:
            shutil.rmtree(folder, ignore_errors=True)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
