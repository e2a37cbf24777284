"""The journal's bytes, which outlive the program that wrote them."""

import struct
import zlib

import msgspec
import pytest
from factories import make_closed, make_ticket

from learner.journal import Dropped, Journal, Took, records
from shared.errors import JournalError
from shared.ticket_wire import encode_ticket


def written(path) -> list[int]:
    journal = Journal(path)
    tickets = [make_ticket(index=i) for i in range(3)]
    entries = [(Took(t.id, t.seed, "rollout-0", 0), encode_ticket(i, make_closed(t))) for i, t in enumerate(tickets)]
    positions = [*journal.append_tickets(entries), journal.append(Dropped(0, "why"))]
    journal.close()
    return positions


def test_a_record_is_the_length_and_the_crc_32_of_what_follows(tmp_path):
    positions = written(tmp_path / "journal")
    content = (tmp_path / "journal").read_bytes()
    for start, end in zip(positions, [*positions[1:], len(content)], strict=True):
        payload = content[start + 8 : end]
        assert struct.unpack_from("<II", content, start) == (len(payload), zlib.crc32(payload))


def test_what_follows_a_byte_that_has_changed_is_not_read(tmp_path):
    path = tmp_path / "journal"
    positions = written(path)
    assert [position for position, _ in records(path)] == positions
    content = bytearray(path.read_bytes())
    content[positions[2] - 1] ^= 1  # the last byte of the second ticket's frame
    path.write_bytes(content)
    assert [position for position, _ in records(path)] == positions[:1]


def test_a_journal_that_a_checkpoint_says_was_longer_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "journal"
    *_, last = written(path)
    whole = path.read_bytes()
    Journal(path, accounted=len(whole)).close()
    path.write_bytes(whole[:-1])
    with pytest.raises(JournalError, match=f"after {last} bytes, .* accounts for {len(whole)}"):
        Journal(path, accounted=len(whole))
    assert path.read_bytes() == whole[:-1]
    Journal(path, accounted=last).close()
    assert path.read_bytes() == whole[:last]


def test_a_whole_record_of_another_version_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "journal"
    written(path)
    payload = msgspec.msgpack.encode(["Unheard", 1])
    whole = path.read_bytes() + struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    path.write_bytes(whole)
    for _ in range(2):  # a journal that is refused is closed
        with pytest.raises(JournalError, match="that this version of primezero does not know"):
            Journal(path)
    with pytest.raises(JournalError, match="that this version of primezero does not know"):
        list(records(path))
    assert path.read_bytes() == whole


def test_zeros_that_a_machine_left_at_the_end_are_cut_off(tmp_path):
    path = tmp_path / "journal"
    written(path)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(4096))
    said: list[str] = []
    Journal(path, said.append).close()
    assert path.read_bytes() == whole
    assert "the last 4096 bytes are no whole record" in said[0]
