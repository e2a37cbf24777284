"""The journal: every closed ticket that was acknowledged, and what became of it.

One append-only file in the run's folder. A record is its payload's length and CRC-32 (little-endian, 4 bytes each),
then the payload: one of the structs below, in msgpack. A record's position is the offset of its first byte, and names
it for ever: nothing is written over, and only a tail that was never written whole is cut off.

What is written survives the process, SIGKILL included; `to_disk` makes it survive the machine.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from isal.isal_zlib import crc32  # the same as zlib.crc32, at ten times its speed

from shared.disk import reason, what_to_do
from shared.episodes import ClosedTicket, TicketId
from shared.errors import JournalError, MessageError
from shared.ticket_wire import Frame, TicketFrame

JOURNAL = "journal"
MAX_RECORD_BYTES = 2**31
_PREFIX = struct.Struct("<II")
_PIECES_AT_ONCE = 1024  # IOV_MAX
# In msgpack: an empty array; an array of one, which is bytes whose length follows, big-endian.
_NO_FRAMES, _ONE_FRAME = b"\x90", b"\x91\xc6"

log = logging.getLogger(__name__)


class _Record(msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True):
    pass


class Took(_Record, frozen=True):
    """A closed ticket, acknowledged from here on.

    seed: the ticket's, as it was issued last; worker: who closed it
    newest: the newest weight version that sampled any of it
    frames: what came: the ticket's frame, the only one
    """

    id: TicketId
    seed: int
    worker: str
    newest: int
    frames: tuple[bytes, ...] = ()

    def closed(self, vocabulary: int) -> ClosedTicket:
        """What was taken. Raises MessageError for what no learner of this version can have acknowledged."""
        if len(self.frames) != 1:
            raise MessageError(f"a closed ticket of another format: {len(self.frames)} frames")
        return TicketFrame.read(self.frames[0]).closed(vocabulary)


class Released(_Record, frozen=True):
    """A batch is trained on. positions: of what it is made of, in ticket order."""

    lineage: int
    batch: int
    positions: tuple[int, ...]


class Dropped(_Record, frozen=True):
    """What was taken at `position` will never be trained on."""

    position: int
    reason: str


class Began(_Record, frozen=True):
    """A learner goes on from weight version `version`; what was released from that batch on is undone."""

    lineage: int
    version: int


Record = Took | Released | Dropped | Began

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class Journal:
    """The journal, open for appending; one process at a time. Not thread-safe.

    Raises JournalError when it cannot be opened, read or written, has a whole record that this version does not know,
    or ends before `accounted`, which a checkpoint says was on the disk: what would be written in its place could not be
    told from it. What was written before stays as it was.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = log.warning, *, accounted: int = 0) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an earlier learner may not write any more
        except OSError as error:
            raise self._error("opened", error) from error
        self.end = 0
        try:
            for _, self.end, _ in _scan(path, 0):
                pass
            if self.end < accounted:
                raise _too_short(path, self.end, accounted)
        except JournalError:
            os.close(self._file)
            raise
        torn = os.fstat(self._file).st_size - self.end
        if torn:
            warn(f"{path}: the last {torn} bytes are no whole record; they are cut off")
            os.ftruncate(self._file, self.end)

    def append(self, record: Record) -> int:
        """Write a record at the end; its position."""
        return self._write([[_encoder.encode(record)]])[0]

    def append_tickets(self, tickets: Sequence[tuple[Took, Frame]]) -> list[int]:
        """Write closed tickets at the end, all at once, each a record that has yet no frame, and its frame.

        Returns their positions. The frames are not copied.
        """
        return self._write([[_head(took, len(frame)), frame] for took, frame in tickets])

    def _write(self, payloads: Sequence[Sequence[Frame]]) -> list[int]:
        start = end = self.end
        positions: list[int] = []
        pieces: list[Frame] = []
        for payload in payloads:
            size, crc = sum(map(len, payload)), 0
            if size > MAX_RECORD_BYTES:
                raise ValueError(f"a record of {size} bytes")
            for piece in payload:
                crc = crc32(piece, crc)
            pieces += [_PREFIX.pack(size, crc), *payload]
            positions.append(end)
            end += _PREFIX.size + size
        try:
            while pieces:
                written = os.pwritev(self._file, pieces[:_PIECES_AT_ONCE], start)
                start += written
                pieces = _beyond(pieces, written)
        except OSError as error:
            os.ftruncate(self._file, self.end)
            raise self._error("written", error) from error
        self.end = end
        return positions

    def records(self, since: int = 0) -> Iterator[tuple[int, Record]]:
        """(position, record) of everything from `since` on, which is a position or the end."""
        return records(self._path, since)

    def at(self, position: int) -> Record | None:
        """The record at a position; None where there is none."""
        return next((record for _, record in records(self._path, position)), None)

    def to_disk(self) -> None:
        """Return once everything is on the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._error("written", error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _error(self, what: str, error: OSError) -> JournalError:
        return JournalError(
            f"the journal {self._path} cannot be {what}: {reason(error)}. Nothing that was acknowledged is lost; "
            f"{what_to_do(self._path, error)}"
        )


def check_length(path: Path, accounted: int) -> None:
    """JournalError where a journal is missing, or plainly shorter than a checkpoint accounts for; nothing is read."""
    size = path.stat().st_size if path.exists() else 0
    if size < accounted:
        raise _too_short(path, size, accounted)


def _too_short(path: Path, end: int, accounted: int) -> JournalError:
    return JournalError(
        f"the journal {path} ends, or is damaged, after {end} bytes, and the checkpoint accounts for {accounted}. Put "
        "the file back as it was, or begin anew with --run.overwrite true"
    )


def records(path: Path, since: int = 0) -> Iterator[tuple[int, Record]]:
    """(position, record) of a journal from `since` on, up to its end or the first that is not whole.

    Raises JournalError when the file cannot be read, or a whole record is none that this version knows.
    """
    return ((position, record) for position, _, record in _scan(path, since))


def _scan(path: Path, since: int) -> Iterator[tuple[int, int, Record]]:
    """(position, position of the next, record)."""
    try:
        with path.open("rb") as file:
            position = since
            while (payload := _read(file.fileno(), position)) is not None:
                try:
                    record: Record = _decoder.decode(payload)
                except msgspec.MsgspecError as error:
                    raise JournalError(
                        f"the journal {path} has a record at byte {position} that this version of primezero does not "
                        f"know ({error}): go on with the version that wrote it, or begin anew with --run.overwrite true"
                    ) from error
                after = position + _PREFIX.size + len(payload)
                yield position, after, record
                position = after
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error


def _read(file: int, position: int) -> bytes | None:
    """The payload of the record at a position; None where there is no whole one.

    A machine that stops may leave zeros at the end of a file: no record is empty.
    """
    prefix = os.pread(file, _PREFIX.size, position)
    if len(prefix) < _PREFIX.size:
        return None
    size, crc = _PREFIX.unpack(prefix)
    if not 0 < size <= os.fstat(file).st_size - position - _PREFIX.size:
        return None
    payload = os.pread(file, size, position + _PREFIX.size)
    return payload if len(payload) == size and crc32(payload) == crc else None


def _head(took: Took, frame_bytes: int) -> bytes:
    """A record's payload up to its one frame, whose bytes are all that follows."""
    without = _encoder.encode(took)
    if without[-1:] != _NO_FRAMES:
        raise ValueError("a record that has frames already")
    return without[:-1] + _ONE_FRAME + frame_bytes.to_bytes(4, "big")


def _beyond(pieces: list[Frame], written: int) -> list[Frame]:
    """What is left of the pieces when so many bytes of them have been written."""
    for i, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[i + 1 :]]
        written -= len(piece)
    return []
