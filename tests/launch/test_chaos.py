"""The learner and the worker killed in the middle of weight updates, again and again."""

from __future__ import annotations

import random
import time
import zlib
from pathlib import Path

import pytest
from whole_runs import Run, check_records

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = 10
RUNNING_S = 600.0
# As far as an update's calls reach: from the first bytes written to the probe's answer.
UPDATE_S = 0.15


def segment_of(pid: int) -> Path | None:
    """Where the learner of this process id writes its weights."""
    return next(Path("/dev/shm").glob(f"primezero-{pid}-*"), None)


def wait_for_an_update(run: Run) -> None:
    """Until the learner begins to write new weights into its segment."""
    deadline = time.monotonic() + RUNNING_S
    before: tuple[Path, int] | None = None
    while time.monotonic() < deadline:
        assert run.process.poll() is None, run.finish()
        segment = segment_of(run.process_named("LearnerProcess").pid) if before is None else before[0]
        if segment is None or not segment.exists():
            before = None
            time.sleep(0.2)
            continue
        with segment.open("rb") as file:
            now = segment, zlib.crc32(file.read(2**16))
        if before is not None and now[1] != before[1]:
            return
        before = now
        time.sleep(0.002)
    pytest.fail("no update ever began")


@pytest.mark.parametrize("seed", [0])
def test_killed_in_the_middle_of_updates_no_weights_are_ever_mixed_and_the_run_goes_on(start, seed):
    rng = random.Random(seed)
    run = start(
        **{
            "run.steps": 10_000,
            "run.time_limit_s": "none",
            "run.checkpoint_every": 2,
            "run.max_restarts": KILLS,
            "selfplay.max_staleness": 1,
        }
    )
    run.wait_for(r"^step +2/")
    for i in range(KILLS):
        kind = "LearnerProcess" if i % 2 == 0 else rng.choice(["RolloutWorker", "RolloutProcess", "EngineCore"])
        victim = run.process_named(kind)
        wait_for_an_update(run)
        time.sleep(rng.uniform(0, UPDATE_S))
        victim.kill()
        run.wait_for("is started again")
        # Without workers a learner can finish the batches that are open: the one after proves that it goes on.
        for _ in range(3):
            run.wait_for(r"^step +\d+/")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    check_records(run)
    restarts = run.records("restarts.jsonl")
    assert [r["process"] for r in restarts] == ["learner", "rollout-0"] * (KILLS // 2)
    assert [r["lineage"] for r in restarts] == [(i + 2) // 2 for i in range(KILLS)]
