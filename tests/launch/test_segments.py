import multiprocessing
import os
from pathlib import Path

import psutil
import pytest

from launch.segments import remove, used_by


def hold(name, ready, end):
    path = Path("/dev/shm") / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    ready.set()
    end.wait(300)
    os.close(descriptor)
    del semaphore


@pytest.fixture
def child():
    spawn = multiprocessing.get_context("spawn")
    ready, end = spawn.Event(), spawn.Event()
    name = f"psm_test{os.getpid()}"
    process = spawn.Process(target=hold, args=(name, ready, end))
    process.start()
    assert ready.wait(120)
    yield psutil.Process(process.pid), Path("/dev/shm") / name
    process.kill()
    process.join(60)


def test_what_a_process_holds_is_found_and_removed_and_nothing_else(child):
    process, held = child
    foreign = Path("/dev/shm") / f"psm_foreign{os.getpid()}"
    foreign.write_text("somebody else's")
    try:
        found = used_by([process])
        assert held in found
        assert any(path.name.startswith("sem.mp-") for path in found)
        assert foreign not in found
        remove(found | {Path("/dev/shm/psm_gone")})
        assert not held.exists()
        assert foreign.exists()
    finally:
        foreign.unlink()
