import multiprocessing
import os
from pathlib import Path

import psutil
import pytest

from launch.segments import remove, used_by

NAMES = [
    *["psm_test{}", "primezero-test-{}", "torch_{}_1076803778_0", "nccl-te{}"],
    "deepspeed_allreduce_buffer_0_127.0.0.1_{}_0",
]


def hold(names, ready, end):
    descriptors = [os.open(Path("/dev/shm") / name, os.O_RDWR | os.O_CREAT, 0o600) for name in names]
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    ready.set()
    end.wait(300)
    for descriptor in descriptors:
        os.close(descriptor)
    del semaphore


@pytest.fixture
def child():
    spawn = multiprocessing.get_context("spawn")
    ready, end = spawn.Event(), spawn.Event()
    names = [name.format(os.getpid()) for name in NAMES]
    process = spawn.Process(target=hold, args=(names, ready, end))
    process.start()
    assert ready.wait(120)
    yield psutil.Process(process.pid), {Path("/dev/shm") / name for name in names}
    process.kill()
    process.join(60)


def test_what_a_process_holds_is_found_and_removed_and_nothing_else(child):
    process, held = child
    foreign = Path("/dev/shm") / f"psm_foreign{os.getpid()}"
    foreign.write_text("somebody else's")
    try:
        found = used_by([process])
        assert held <= found
        assert any(path.name.startswith("sem.mp-") for path in found)
        assert foreign not in found
        remove(found | {Path("/dev/shm/psm_gone")})
        assert not any(path.exists() for path in held)
        assert foreign.exists()
    finally:
        foreign.unlink()
