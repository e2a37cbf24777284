"""A run whose worker stands still for ever."""

from __future__ import annotations

import pytest
from whole_runs import check_records

from launch.marked_processes import lives

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


@pytest.mark.slow
def test_a_worker_that_stands_still_for_ever_is_ended_and_started_again(start):
    run = start(**{"run.steps": 10_000, "run.time_limit_s": "none", "run.hang_timeout_s": 45})
    run.wait_for(r"step +2/")
    stopped = run.process_named("RolloutProcess")
    stopped.suspend()
    line = run.wait_for("is started again")
    assert line.startswith("rollout-0 hangs: no sign of life for 45 s (run.hang_timeout_s); rollout-0 is started again")
    assert not lives(stopped)
    for _ in range(2):  # without workers a learner can finish the step that it is in
        run.wait_for(r"^step +\d+/")
    run.press_ctrl_c()
    output = run.finish()
    assert run.process.returncode == 0, output
    check_records(run)
    (restart,) = run.records("restarts.jsonl")
    assert restart["process"] == "rollout-0"
    assert "hangs" in restart["reason"]
