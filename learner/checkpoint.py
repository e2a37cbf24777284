"""Checkpoints: written beside and renamed into place, the last few kept, each with the sums of its bytes.

    checkpoints/step-000040/state.json      everything of rank 0 but the policy
                            policy/         weights, optimizer and schedule, in DeepSpeed's own files
                            manifest.json   length and CRC-32 of every other file, written last

The run folder is trusted: DeepSpeed's files are PyTorch archives.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from isal.isal_zlib import crc32  # the same as zlib.crc32, at ten times its speed

from learner.file_progress import flush
from shared.errors import CheckpointError

POLICY = "policy"
_STATE, _MANIFEST = "state.json", "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")
_CHUNK_BYTES = 2**24

log = logging.getLogger(__name__)


class TrainerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run is, besides its policy.

    version: batches trained
    identity: fingerprints of what the run is made with: model, tokenizer, environment
    buffer, normaliser, policy, collector: the states of their owners, plain data that these check themselves
    journal_end: everything in the journal before it is accounted for in this state
    """

    version: int
    identity: dict[str, str]
    buffer: dict[str, Any]
    normaliser: dict[str, Any]
    policy: dict[str, Any]
    collector: dict[str, Any]
    journal_end: int


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    crc32: int


class CheckpointStore:
    """The checkpoints of one run; one process writes at a time.

    beat: called with every part of a file that is read or written here
    """

    def __init__(self, folder: Path, *, keep: int, every: int = 0, beat: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._beat = beat
        self._keep = keep
        self._every = every

    def partial(self, version: int) -> Path:
        """The folder that a checkpoint is written in; it counts for nothing before `commit`."""
        return self._folder / f".{_name(version)}"

    def begin(self, version: int) -> Path:
        """That folder, empty but for a place for the policy's files. What was never finished before is removed."""
        partial = self.partial(version)
        for unfinished in self._folder.glob(".step-*"):
            shutil.rmtree(unfinished)
        (partial / POLICY).mkdir(parents=True, mode=0o700)
        return partial

    def commit(self, partial: Path, state: TrainerState) -> None:
        """Add the state and the manifest, rename into place, remove the oldest."""
        (partial / _STATE).write_bytes(msgspec.json.encode(state))
        files = {str(path.relative_to(partial)): _sums(path, self._beat) for path in _files(partial)}
        (partial / _MANIFEST).write_bytes(msgspec.json.encode(files))
        for path in [*_files(partial), *_folders(partial)]:
            flush(path, self._beat)
        abandoned = [path for path in self._committed() if _version(path) >= state.version]
        for path in abandoned:  # of a lineage that this run went back behind
            path.rename(path.with_name(f".{path.name}.abandoned"))
        partial.rename(self._folder / _name(state.version))
        flush(self._folder, self._beat)
        for path in [*self._folder.glob(".step-*.abandoned"), *self._committed()[: -self._keep]]:
            shutil.rmtree(path)

    def latest(self, warn: Callable[[str], None] = log.warning) -> tuple[Path, TrainerState] | None:
        """The newest intact checkpoint and its state, None where there is none at all.

        A broken one is passed over, saying so. Raises CheckpointError when all are broken.
        """
        committed = self._committed()
        for path in reversed(committed):
            try:
                _check_files(path, self._beat)
                return path, read_state(path)
            except CheckpointError as error:
                warn(f"{error}: it is passed over")
        if committed:
            raise CheckpointError(f"every checkpoint in {self._folder} is broken: start anew with --run.overwrite true")
        return None

    def is_due(self, version: int) -> bool:
        """Whether a run that goes on is to be saved at `version`."""
        return self._every > 0 and version > 0 and version % self._every == 0

    def _committed(self) -> list[Path]:
        return sorted((path for path in self._folder.glob("step-*") if _NAME.fullmatch(path.name)), key=_version)


def read_state(folder: Path) -> TrainerState:
    """The state in a checkpoint that `latest` has found intact: its files are many gigabytes, and are read once."""
    try:
        return msgspec.json.decode((folder / _STATE).read_bytes(), type=TrainerState)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {error}") from error


def _check_files(folder: Path, beat: Callable[[], None]) -> None:
    """CheckpointError unless every file is what was written."""
    try:
        files = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=dict[str, _File])
        for name, expected in files.items():
            if _sums(folder / name, beat) != expected:
                raise CheckpointError(f"{folder / name} is not what was written")
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {error}") from error


def _name(version: int) -> str:
    return f"step-{version:06}"


def _version(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (path for path in folder.rglob("*") if path.is_dir())


def _sums(path: Path, beat: Callable[[], None]) -> _File:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            size, crc = size + len(chunk), crc32(chunk, crc)
            beat()
    return _File(size, crc)
