import multiprocessing
import os
from pathlib import Path

import pytest

from launch.segments import remove, segments_of_descendants


def hold(name, ready, end):
    path = Path("/dev/shm") / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    ready.set()
    end.wait(30)
    os.close(descriptor)
    del semaphore


@pytest.fixture
def child():
    spawn = multiprocessing.get_context("spawn")
    ready, end = spawn.Event(), spawn.Event()
    name = f"psm_test{os.getpid()}"
    process = spawn.Process(target=hold, args=(name, ready, end))
    process.start()
    assert ready.wait(30)
    yield Path("/dev/shm") / name
    process.kill()
    process.join(10)


def test_what_a_child_holds_is_found_and_removed_and_nothing_else(child):
    foreign = Path("/dev/shm") / f"psm_foreign{os.getpid()}"
    foreign.write_text("somebody else's")
    try:
        found = segments_of_descendants()
        assert child in found
        assert any(path.name.startswith("sem.mp-") for path in found)
        assert foreign not in found
        remove(found | {Path("/dev/shm/psm_gone")})
        assert not child.exists()
        assert foreign.exists()
    finally:
        foreign.unlink()
