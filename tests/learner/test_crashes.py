"""Whatever crashes when: what was acknowledged is trained on once, or dropped on the record; never by other weights."""

import random
import tempfile
from pathlib import Path

import pytest
from crashing_run import CrashingRun
from factories import make_problem
from hypothesis import given
from hypothesis import strategies as st

from learner.audit import Audit, audit
from learner.journal import Journal, Released
from learner.recovery import ROLLED_BACK
from shared.episodes import Task
from shared.errors import JournalError

SEEDS = {task: [make_problem(f"key {i}", task) for i in range(5)] for task in Task}
EVENTS = ["join", "fail", "vanish", "bring_up", "close", "close", "close_several", "close_again", "train", "save"]
ODDS = {"join": 1, "fail": 1, "bring_up": 3, "close": 20, "close_several": 3, "train": 5, "save": 1, "crash": 0.4}
STALENESS = [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]


@given(
    st.sampled_from(STALENESS),
    st.lists(st.tuples(st.sampled_from([*EVENTS, "crash"]), st.integers(0, 9)), max_size=150),
)
def test_nothing_is_lost_and_nothing_is_trained_on_twice_whatever_crashes(bounds, events):
    max_staleness, every = bounds
    with tempfile.TemporaryDirectory() as folder:
        run = CrashingRun(SEEDS, Path(folder), max_staleness=max_staleness, every=every)
        for event, which in events:
            getattr(run, event)(which)
        run.finish(len(run.batches) + 2)
        run.check()
        audited = run.audit()
        assert (audited.lost, audited.twice, audited.unrecorded) == (0, 0, 0)
        assert audited.trained == 6 * len(run.batches)
        assert audited.acknowledged == audited.trained + audited.open + sum(audited.dropped.values())


@pytest.mark.parametrize(("max_staleness", "every"), STALENESS)
def test_a_long_run_that_crashes_again_and_again(tmp_path, max_staleness, every):
    rng = random.Random(every)
    run = CrashingRun(SEEDS, tmp_path, max_staleness=max_staleness, every=every)
    for _ in range(1500):
        (event,) = rng.choices(list(ODDS), list(ODDS.values()))
        getattr(run, event)(rng.randrange(6))
    run.finish(len(run.batches) + 1)
    run.check()
    audited = run.audit()
    assert (audited.lost, audited.twice, audited.unrecorded) == (0, 0, 0)
    assert run.lineage > 3
    assert len(run.batches) > 20
    assert audited.dropped.keys() == {ROLLED_BACK}  # some were sampled by weights that were given up


def test_what_a_crash_interrupts_is_used_again_where_the_checkpoint_covers_it(tmp_path):
    run = CrashingRun(SEEDS, tmp_path, max_staleness=0, every=1)
    run.join(0)
    run.bring_up()
    for _ in range(4):
        run.close(0)
    run.crash(0)
    assert run.pool._collector.progress(0) == (4, 6)
    run.bring_up()
    assert len(run.workers[0].open) == 2
    run.finish(1)
    run.save()
    run.close(0)  # of batch 1, recorded after the checkpoint
    run.crash(0)
    assert run.pool._collector.progress(1) == (1, 6)
    run.finish(2)
    run.check()
    assert run.audit() == Audit(
        acknowledged=12, trained=12, dropped={}, open=0, lost=0, twice=0, batches=2, unrecorded=0
    )


def test_work_of_weights_that_are_given_up_is_dropped_on_the_record(tmp_path):
    run = CrashingRun(SEEDS, tmp_path, max_staleness=0, every=1)
    run.finish(1)
    run.close(0)
    run.crash(0)  # back to version 0: batch 0 is all there, batch 1 was sampled by version 1
    assert run.pool._collector.is_complete(0)
    assert not run.workers[0].open
    run.finish(2)
    run.check()
    assert run.audit().dropped == {ROLLED_BACK: 1}


def test_the_audit_finds_what_is_lost_and_what_is_trained_on_twice(tmp_path):
    run = CrashingRun(SEEDS, tmp_path, max_staleness=1, every=1)
    run.finish(2)
    run.close(0)
    assert run.audit().open > 0
    run.journal.append(Released(0, 2, run.batches[1].positions))
    audited = run.audit()
    assert audited.twice == 6
    assert audited.lost > 0
    assert audited.unrecorded == 1


def test_a_torn_tail_is_cut_and_what_it_held_is_played_again(tmp_path):
    run = CrashingRun(SEEDS, tmp_path, max_staleness=0, every=1)
    run.join(0)
    run.bring_up()
    run.close(0)
    run.close(0)
    path = run.folder / "journal"
    path.write_bytes(path.read_bytes()[:-1])
    warnings = []
    run._warn = warnings.append
    run.crash(0)
    assert len(warnings) == 1
    assert run.pool._collector.progress(0) == (1, 6)
    run.finish(1)
    run.check()
    assert audit(tmp_path).lost == 0


def test_one_process_writes_at_a_time(tmp_path):
    journal = Journal(tmp_path / "journal")
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(tmp_path / "journal")
    journal.close()
    Journal(tmp_path / "journal").close()
