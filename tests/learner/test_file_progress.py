"""Long reading and writing shows life while bytes move, and none while they do not."""

import os

import pytest
from waiting import until

import learner.file_progress
from learner.file_progress import beating_with, bytes_in, bytes_read, flush


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(learner.file_progress, "LOOK_S", 0.01)


def test_a_folder_that_grows_shows_life_until_it_stands_still(tmp_path):
    beats, looks = [], []

    def size() -> int:
        looks.append(None)
        return bytes_in(tmp_path)

    def looked() -> None:
        seen = len(looks)
        until(lambda: len(looks) > seen + 2)

    with beating_with(size, lambda: beats.append(None)):
        looked()
        assert beats == []
        for part in range(1, 4):
            (tmp_path / "policy").mkdir(exist_ok=True)
            with (tmp_path / "policy" / "rank-0.pt").open("ab") as file:
                file.write(b"x" * 1000)
            until(lambda part=part: len(beats) == part)
        looked()
        assert len(beats) == 3
    assert bytes_in(tmp_path) >= 3000


def test_it_ends_with_what_it_looks_at(tmp_path):
    with pytest.raises(OSError, match="full"), beating_with(lambda: 0, lambda: None):
        raise OSError("full")
    assert "file-progress" not in {thread.name for thread in learner.file_progress.threading.enumerate()}


def test_what_the_process_reads_is_counted_in_mib(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(3 * 2**20))
    before = bytes_read()
    file.read_bytes()
    assert bytes_read() - before >= 2


def test_a_file_is_flushed_with_a_beat_for_each_part(tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(10_000))
    beats: list[None] = []
    flush(tmp_path / "file", lambda: beats.append(None), part_bytes=4096)
    assert len(beats) == 4
    flush(tmp_path, lambda: beats.append(None))
    assert len(beats) == 5
