"""Which processes are started again, when, and when a run is given up: on a clock of its own, without processes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.supervisor import (
    LEAVE_S,
    LONGEST_BACKOFF_S,
    VERDICT_S,
    WINDOW_S,
    Ended,
    Origin,
    ProcessDied,
    Restart,
    Supervisor,
    Unit,
)
from learner.progress import Summary
from shared.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    MessageError,
    ModelFolderError,
    PrimezeroError,
    SentAwayError,
    StreamTimeoutError,
    WeightSyncError,
    WorkerFailedError,
)

HANG_S = 100.0
SUMMARY = Summary(0.1, 0.2, 0.3, {}, None, None, 5, 1.0, 10, 100, 6, 0)
PASSING = [
    EngineError("e"),
    WeightSyncError("w"),
    StreamTimeoutError("s"),
    SentAwayError("a"),
    ValueError("ours"),
    ProcessDied(),
]
DELIBERATE = [ConfigError, ModelFolderError, WorkerFailedError, MessageError, CheckpointError, PrimezeroError]


class World:
    """Processes that end when they are told to, a clock that moves by waiting, and a supervisor."""

    def __init__(self, *, workers: int = 2, ranks: int = 2, max_restarts: int = 5, loss_s: float = 0.0) -> None:
        self.now = 0.0
        self.alive: set[str] = set()
        self.started: list[tuple[float, str]] = []
        self.restarts: list[Restart] = []
        self.on_record: Summary | None = None
        self.lineage = 0
        self.coming: list[tuple[float, Ended]] = []
        self.hanging: set[str] = set()
        self.progress: Counter[str] = Counter()
        self.gone: dict[str, str] = {}
        self.losses: list[str] = []
        names = [f"learner-{rank}" for rank in range(ranks)]
        self.units = {"learner": names} | {f"rollout-{i}": [f"rollout-{i}"] for i in range(workers)}
        learner, *rest = (self.unit(name) for name in self.units)
        self.supervisor = Supervisor(
            self,
            learner,
            rest,
            max_restarts=max_restarts,
            hang_timeout_s=HANG_S,
            logs=Path("logs"),
            progress=lambda: self.progress,
            finished=lambda: self.on_record,
            on_restart=self.restarts.append,
            on_loss=self.losses.append,
            loss_s=loss_s,
            clock=lambda: self.now,
        )
        self.supervisor.start()

    def unit(self, name: str) -> Unit:
        def start() -> None:
            assert self.alive.isdisjoint(self.units[name])
            self.alive.update(self.units[name])
            self.started.append((self.now, name))

        def go_on() -> Origin:
            assert self.alive.isdisjoint(self.units[name])
            self.lineage += name == "learner"
            return Origin(self.lineage, 40 if name == "learner" else None)

        return Unit(name, self.units[name], start, go_on)

    def ends(self, *ended: Ended, after_s: float = 0.0) -> None:
        self.coming += [(self.now + after_s, e) for e in ended]
        self.coming.sort(key=lambda item: item[0])

    def dies(self, name: str) -> None:
        self.ends(Ended(name, error=ProcessDied()))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and self.supervisor.watch(min(0.5, end - self.now)) is None:
            pass

    # --- what the supervisor sees ---

    def poll(self, timeout_s: float) -> list[Ended]:
        assert timeout_s >= 0
        end = self.now + timeout_s
        self.now = min([end, *(max(self.now, when) for when, _ in self.coming)])
        due = [ended for when, ended in self.coming if when <= self.now and ended.name in self.alive]
        self.coming = [(when, ended) for when, ended in self.coming if when > self.now]
        self.alive -= {ended.name for ended in due}
        return due

    def end(self, names: list[str]) -> None:
        self.alive -= set(names)
        self.hanging -= set(names)
        self.coming = [(when, ended) for when, ended in self.coming if ended.name not in names]

    def running(self) -> set[str]:
        return set(self.alive)

    def lost(self) -> dict[str, str]:
        return dict(self.gone)

    def beats(self) -> dict[str, int]:
        return {name: -1 if name in self.hanging else int(self.now) for name in sorted(self.alive)}

    def everyone(self) -> set[str]:
        return {name for names in self.units.values() for name in names}


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch) -> Path:
    """What each process has begun to write."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("learner-0", "learner-1", "learner-2", "rollout-0", "rollout-1", "rollout-2"):
        (folder / f"{name}.log").touch()
    return folder


def test_at_once_the_first_time_then_after_ever_longer_and_at_once_again_when_it_had_been_well():
    world = World(max_restarts=8)
    waits = []
    for _ in range(8):
        died = world.now
        world.dies("rollout-1")
        world.pass_time(0.25)
        while world.alive != world.everyone():
            world.pass_time(0.25)
        waits.append(world.started[-1][0] - died)
    assert waits == [0, 1, 2, 4, 8, 16, 30, 30]
    assert [r.delay_s for r in world.restarts] == waits
    assert [r.number for r in world.restarts] == list(range(1, 9))
    assert LONGEST_BACKOFF_S == 30
    world.progress["rollout-1"] += 1
    world.pass_time(WINDOW_S)
    died = world.now
    world.dies("rollout-1")
    world.pass_time(0.5)
    assert world.started[-1] == (died, "rollout-1")
    assert (world.restarts[-1].delay_s, world.restarts[-1].number) == (0, 1)


@given(
    deaths=st.lists(
        st.tuples(
            st.floats(0, 250), st.sampled_from(["rollout-0", "rollout-1", "learner-0", "learner-1"]), st.booleans()
        ),
        max_size=60,
    ),
    limit=st.integers(0, 4),
    causes=st.randoms(use_true_random=False),
)
def test_deaths_below_the_limit_never_end_a_run_and_one_beyond_it_does(deaths, limit, causes):
    world = World(max_restarts=limit)
    failed: dict[str, list[tuple[float, int]]] = {}
    for pause, name, progress in deaths:
        world.pass_time(pause)
        unit = next(unit for unit, names in world.units.items() if name in names)
        if name not in world.alive:  # it waits to be started again
            continue
        world.progress[unit] += progress
        done = world.progress[unit]
        recent = [at for at, then in failed.setdefault(unit, []) if world.now - at < WINDOW_S or then == done]
        worker = unit.startswith("rollout")
        world.ends(Ended(name, error=causes.choice(PASSING) if worker else ProcessDied()))
        if len(recent) >= limit:
            with pytest.raises(PrimezeroError, match=rf"{name}.*run\.max_restarts={limit}\); see logs/{name}\.log"):
                world.pass_time(1)
            return
        failed[unit].append((world.now, done))
        world.pass_time(0.1)
    world.pass_time(LONGEST_BACKOFF_S)
    assert world.alive == world.everyone()
    assert Counter(unit for _, unit in world.started) == Counter([*world.units, *(r.unit for r in world.restarts)])
    assert len(world.restarts) == sum(map(len, failed.values()))


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_worker_that_may_do_better_next_time_is_started_again_and_the_rest_left_alone(error):
    world = World()
    world.ends(Ended("rollout-1", error=error))
    world.pass_time(1)
    assert [name for _, name in world.started] == ["learner", "rollout-0", "rollout-1", "rollout-1"]
    (restart,) = world.restarts
    assert restart.reason.startswith("rollout-1 failed: ") or restart.reason == "the process of rollout-1 died"
    assert restart.origin == Origin(lineage=0)


@pytest.mark.parametrize("kind", DELIBERATE)
def test_an_error_that_another_start_would_meet_again_ends_the_run(kind):
    world = World()
    world.ends(Ended("rollout-1", error=kind("as it is")))
    with pytest.raises(kind, match="as it is"):
        world.pass_time(1)
    assert world.restarts == []


@pytest.mark.parametrize("error", [EngineError("said"), CheckpointError("said"), ValueError("said")], ids=repr)
def test_what_the_learner_raises_ends_the_run(error):
    world = World(ranks=1)
    world.ends(Ended("learner-0", error=error))
    with pytest.raises(PrimezeroError, match="said") as raised:
        world.pass_time(0.1)
    if isinstance(error, ValueError):
        assert re.search(r"learner-0 failed: ValueError: said\nsee logs/learner-0\.log", str(raised.value))
    assert world.restarts == []


def test_all_ranks_are_started_again_as_one_from_where_the_run_folder_says():
    world = World(ranks=3)
    world.dies("learner-1")
    world.dies("learner-2")
    world.pass_time(1)
    assert world.alive == world.everyone()
    (restart,) = world.restarts
    assert (restart.unit, restart.reason) == ("learner", "the process of learner-1 died")
    assert restart.origin == Origin(lineage=1, version=40)
    assert [name for _, name in world.started].count("learner") == 2
    assert [name for _, name in world.started].count("rollout-0") == 1


@given(
    error=st.sampled_from([RuntimeError("connection closed by peer"), CheckpointError("cannot be written")]),
    later=st.floats(-VERDICT_S, VERDICT_S * 2).filter(lambda t: abs(t - VERDICT_S) > 0.1),
)
def test_a_rank_that_fails_because_another_died_is_no_error_of_its_own(error, later):
    world = World()
    world.ends(Ended("learner-0", error=error), after_s=max(0.0, -later))
    world.ends(Ended("learner-1", error=ProcessDied()), after_s=max(0.0, later))
    if later < VERDICT_S:
        world.pass_time(60)
        assert world.alive == world.everyone()
        assert [r.unit for r in world.restarts] == ["learner"]
    else:
        with pytest.raises(PrimezeroError, match=str(error)):
            world.pass_time(60)


def test_a_worker_that_hangs_is_ended_and_started_again_and_the_record_says_why():
    world = World()
    world.pass_time(20)
    world.hanging.add("rollout-1")
    world.pass_time(HANG_S - 5)
    assert world.restarts == []
    world.pass_time(10)
    assert world.alive == world.everyone()
    assert [r.reason for r in world.restarts] == ["rollout-1 hangs: no sign of life for 100 s (run.hang_timeout_s)"]
    world.pass_time(HANG_S * 3)
    assert len(world.restarts) == 1


@pytest.mark.parametrize("stuck", [["learner-0"], ["learner-1"], ["learner-0", "learner-1"]])
def test_a_rank_that_hangs_ends_all_ranks_once(stuck):
    world = World()
    world.pass_time(20)
    world.hanging.update(stuck)
    world.pass_time(HANG_S + 5)
    assert world.alive == world.everyone()
    (restart,) = world.restarts
    assert (restart.unit, restart.origin.lineage) == ("learner", 1)
    assert restart.reason.startswith(f"{stuck[0]} hangs")
    assert [name for _, name in world.started].count("rollout-0") == 1


@pytest.mark.parametrize("name", ["rollout-0", "learner-0"])
@pytest.mark.parametrize("waits_s", [0, HANG_S, WINDOW_S, 3 * WINDOW_S])
def test_one_that_fails_again_and_again_without_getting_further_ends_the_run_however_long_each_takes(name, waits_s):
    world = World(max_restarts=2)
    world.progress.update({"rollout-1": 1, "learner": 1} if name == "rollout-0" else {"rollout-1": 1})
    for number in (1, 2):
        world.pass_time(waits_s)
        world.progress["rollout-1"] += 1  # the others' work is none of its
        world.dies(name)
        world.pass_time(LONGEST_BACKOFF_S)
        assert world.restarts[-1].number == number
    world.pass_time(waits_s)
    world.dies(name)
    with pytest.raises(PrimezeroError, match=f"{name} died, after 2 restarts within ten minutes or without progress"):
        world.pass_time(1)


def test_one_that_gets_further_each_time_is_started_again_for_ever():
    world = World(max_restarts=1)
    for _ in range(20):
        world.progress["rollout-0"] += 1
        world.hanging.add("rollout-0")
        world.pass_time(WINDOW_S + 2 * HANG_S)
    assert [r.number for r in world.restarts] == [1] * 20


def test_one_that_hangs_again_and_again_ends_the_run():
    world = World(max_restarts=2)
    for _ in range(2):
        world.hanging.add("rollout-0")
        world.pass_time(HANG_S + 10)
    assert len(world.restarts) == 2
    world.hanging.add("rollout-0")
    with pytest.raises(PrimezeroError, match=r"rollout-0 hangs.* after 2 restarts .*see logs/rollout-0\.log"):
        world.pass_time(HANG_S + 10)


def test_a_launcher_that_stood_still_itself_takes_nobody_for_hanging():
    world = World()
    world.pass_time(20)
    world.hanging.update(world.alive)
    world.now += HANG_S * 10
    world.pass_time(10)
    world.hanging.clear()
    world.pass_time(HANG_S * 2)
    assert world.restarts == []


def test_nobody_is_called_hanging_once_there_is_a_summary():
    world = World()
    world.ends(Ended("learner-0", result=SUMMARY))
    world.hanging.add("rollout-0")
    world.pass_time(HANG_S * 2)
    world.supervisor.watch(0.5)
    world.now += 5
    assert world.supervisor.watch(0.5) == SUMMARY
    assert world.restarts == []


def test_a_learner_that_died_with_everything_on_record_is_not_started_again():
    world = World()
    world.on_record = SUMMARY
    world.dies("learner-0")
    world.pass_time(5)
    assert world.supervisor.summary == SUMMARY
    assert world.restarts == []
    before = world.now
    world.supervisor.wait_for_goodbyes(30)  # nobody has told the workers
    assert world.now == before


def test_a_worker_that_was_sent_home_by_a_learner_that_failed_comes_back():
    world = World()
    world.ends(Ended("rollout-0"))
    world.pass_time(LEAVE_S / 2)
    assert world.restarts == []
    world.dies("learner-1")
    world.pass_time(LEAVE_S)
    assert world.alive == world.everyone()
    assert [r.unit for r in world.restarts] == ["learner", "rollout-0"]


@given(order=st.permutations(["learner-0", "learner-1", "rollout-0", "rollout-1"]), pauses=st.floats(0, LEAVE_S / 4))
def test_at_the_end_everyone_leaves_in_any_order_and_nobody_is_called_back(order, pauses):
    world = World()
    for i, name in enumerate(order):
        world.ends(Ended(name, result=SUMMARY if name == "learner-0" else None), after_s=i * pauses)
    world.pass_time(60)
    assert world.supervisor.summary == SUMMARY
    world.supervisor.wait_for_goodbyes(60)
    assert world.alive == set()
    assert world.restarts == []


@pytest.mark.parametrize("seen", ["lost", "died", "hangs"])
def test_a_worker_whose_machine_is_lost_is_named_with_it_and_started_no_more(seen):
    world = World(workers=3, max_restarts=1)
    world.pass_time(20)
    if seen == "died":  # and Ray has not given its machine up yet
        world.dies("rollout-1")
        world.pass_time(1)
    elif seen == "hangs":
        world.hanging.add("rollout-1")
        world.pass_time(HANG_S + 5)
    restarts = len(world.restarts)
    world.gone["rollout-1"] = "10.0.0.2"
    world.hanging.add("rollout-1")
    world.pass_time(5 * WINDOW_S)
    world.dies("rollout-1")
    world.pass_time(5 * WINDOW_S)
    assert world.alive == world.everyone() - {"rollout-1"}
    assert len(world.restarts) == restarts == (seen != "lost")
    [loss] = world.losses
    assert loss.startswith("machine 10.0.0.2 is lost, and with it rollout-1: the run goes on with the others")
    world.dies("learner-0")
    world.pass_time(LONGEST_BACKOFF_S)
    assert world.alive == world.everyone() - {"rollout-1"}


def test_a_run_whose_last_worker_s_machine_is_lost_ends():
    world = World()
    world.gone["rollout-0"] = "10.0.0.2"
    world.pass_time(60)
    world.gone["rollout-1"] = "10.0.0.3"
    with pytest.raises(PrimezeroError, match=r"machine 10\.0\.0\.3 is lost, and with it rollout-1, without which"):
        world.pass_time(60)


@pytest.mark.parametrize("heard", [None, RuntimeError("DistStoreError: wait timeout")])
def test_a_learner_rank_s_machine_that_is_lost_ends_the_run_and_is_named(heard):
    """Also where the other ranks fail for it a while before Ray is sure."""
    world = World(ranks=3, loss_s=60)
    if heard is not None:
        world.ends(Ended("learner-0", error=heard))
        world.pass_time(40)
    world.gone |= {"learner-1": "10.0.0.2", "rollout-1": "10.0.0.2"}
    with pytest.raises(PrimezeroError, match=r"machine 10\.0\.0\.2 is lost, and with it learner-1, without which"):
        world.pass_time(60)


@pytest.mark.parametrize("lost", [True, False])
def test_one_that_dies_over_and_over_since_its_machine_is_lost_ends_no_run_before_that_is_known(lost):
    world = World(max_restarts=1, loss_s=60)
    for _ in range(2):
        world.pass_time(5)
        world.dies("rollout-0")
    world.pass_time(30)
    assert world.alive == world.everyone() - {"rollout-0"}
    if lost:
        world.gone["rollout-0"] = "10.0.0.2"
        world.pass_time(WINDOW_S)
        assert world.losses
    else:
        with pytest.raises(PrimezeroError, match="rollout-0 died, after 1 restarts"):
            world.pass_time(31)


def test_how_the_others_leave_after_the_summary_no_longer_matters():
    world = World()
    world.ends(Ended("rollout-0", error=ConfigError("late")), Ended("learner-0", result=SUMMARY))
    world.ends(Ended("rollout-1", error=ProcessDied()), after_s=2)
    world.pass_time(60)
    assert world.supervisor.summary == SUMMARY
    world.supervisor.wait_for_goodbyes(5)
    assert world.alive == {"learner-1"}
    assert world.now == 5
    assert world.restarts == []


def test_a_reason_is_one_line():
    world = World()
    world.ends(Ended("rollout-0", error=ValueError("x" * 1000)), Ended("rollout-1", error=EngineError("first\nsecond")))
    world.pass_time(1)
    long, lines = (r.reason for r in world.restarts)
    assert len(long) < 400
    assert lines == "rollout-1 failed: EngineError: first"


def test_a_long_reason_is_cut_between_words():
    world = World()
    world.ends(Ended("rollout-0", error=ValueError("word " * 100)))
    world.pass_time(1)
    assert re.fullmatch(r"rollout-0 failed: ValueError:( word)+ …", world.restarts[0].reason)


def test_what_ends_a_run_is_shown_whole_in_its_lines():
    world = World(ranks=1)
    world.ends(Ended("learner-0", error=RuntimeError("one\n  two 'quoted'\n" + "three " * 100)))
    with pytest.raises(PrimezeroError) as raised:
        world.pass_time(0.1)
    said = "learner-0 failed: RuntimeError: one\n  two 'quoted'\n" + ("three " * 100).strip()
    assert str(raised.value) == f"{said}\nsee logs/learner-0.log"


def test_a_log_that_does_not_exist_is_not_named_as_one_to_look_at(logs):
    (logs / "rollout-0.log").unlink()
    world = World(max_restarts=0)
    world.dies("rollout-0")
    with pytest.raises(PrimezeroError, match=r"it had not come so far as to begin its log, logs/rollout-0\.log"):
        world.pass_time(1)
