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
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from shared.disk import reason, what_to_do
from shared.episodes import ClosedTicket, Ticket, TicketId
from shared.errors import JournalError, MessageError
from shared.messages import Closed, Frame, decode, decode_closed

JOURNAL = "journal"
MAX_RECORD_BYTES = 2**31
_PREFIX = struct.Struct("<II")

log = logging.getLogger(__name__)


class _Record(msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True):
    pass


class Took(_Record, frozen=True):
    """A closed ticket, acknowledged from here on.

    seed: the ticket's, as it was issued last; worker: who closed it
    newest: the newest weight version that sampled any of it
    frames: the message, as it came
    """

    id: TicketId
    seed: int
    worker: str
    newest: int
    frames: tuple[bytes, ...]

    @classmethod
    def of(cls, ticket: Ticket, closed: ClosedTicket, worker: str, frames: tuple[bytes, ...]) -> Took:
        """The record of a ticket, as it was issued, and as it came back."""
        return cls(ticket.id, ticket.seed, worker, closed.newest_version, frames)

    def closed(self) -> ClosedTicket:
        """What was taken. Raises MessageError for what no learner can have acknowledged."""
        message, buffers = decode(self.frames)
        if not isinstance(message, Closed):
            raise MessageError(f"{type(message).__name__} in the journal")
        return decode_closed(message, buffers)


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

    Raises JournalError when it cannot be opened, read or written. What was written before stays as it was.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = log.warning) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an earlier learner may not write any more
        except OSError as error:
            raise self._error("opened", error) from error
        self.end = 0
        for _, self.end, _ in _scan(path, 0):
            pass
        torn = os.fstat(self._file).st_size - self.end
        if torn:
            warn(f"{path}: the last {torn} bytes are no whole record; they are cut off")
            os.ftruncate(self._file, self.end)

    def append(self, record: Record) -> int:
        """Write a record at the end; its position."""
        payload = _encoder.encode(record)
        if len(payload) > MAX_RECORD_BYTES:
            raise ValueError(f"a record of {len(payload)} bytes")
        position = self.end
        data = memoryview(_PREFIX.pack(len(payload), zlib.crc32(payload)) + payload)
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], position + written)
        except OSError as error:
            os.ftruncate(self._file, position)
            raise self._error("written", error) from error
        self.end = position + len(data)
        return position

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


def records(path: Path, since: int = 0) -> Iterator[tuple[int, Record]]:
    """(position, record) of a journal from `since` on, up to its end or the first that is not whole.

    Raises JournalError when the file cannot be read.
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
                except msgspec.MsgspecError:
                    return
                after = position + _PREFIX.size + len(payload)
                yield position, after, record
                position = after
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error


def _read(file: int, position: int) -> bytes | None:
    """The payload of the record at a position; None where there is no whole one."""
    prefix = os.pread(file, _PREFIX.size, position)
    if len(prefix) < _PREFIX.size:
        return None
    size, crc = _PREFIX.unpack(prefix)
    if size > os.fstat(file).st_size - position - _PREFIX.size:
        return None
    payload = os.pread(file, size, position + _PREFIX.size)
    return payload if len(payload) == size and zlib.crc32(payload) == crc else None


def whole_frames(header: Closed, buffers: Sequence[Frame]) -> tuple[bytes, ...]:
    """A message's frames as bytes of their own, from its decoded header and its buffers."""
    return (_encoder.encode(header), *(bytes(buffer) for buffer in buffers))
