from launch.vitals import LAUNCHER_QUIET_S, Vitals


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_all_is_well_only_while_every_process_runs_and_beats():
    clock = Clock()
    vitals = Vitals(["learner-0", "rollout-0"], clock)
    assert vitals.complaints(5) == ["learner-0 does not run", "rollout-0 does not run"]
    vitals.look({"learner-0", "rollout-0"}, {"learner-0": 4, "rollout-0": -1}, {})
    assert vitals.complaints(5) == ["rollout-0 is starting"]
    vitals.look({"learner-0", "rollout-0"}, {"learner-0": 4, "rollout-0": 1}, {})
    assert vitals.complaints(5) == []
    clock.now += 6
    vitals.look({"learner-0", "rollout-0"}, {"learner-0": 4, "rollout-0": 2}, {})
    assert vitals.complaints(5) == ["learner-0 has given no sign of life for 6 s"]
    vitals.look({"rollout-0"}, {"rollout-0": 2}, {})
    assert vitals.complaints(5) == ["learner-0 does not run"]


def test_a_launcher_that_no_longer_looks_is_no_sign_of_health():
    clock = Clock()
    vitals = Vitals(["learner-0"], clock)
    vitals.look({"learner-0"}, {"learner-0": 1}, {})
    clock.now += LAUNCHER_QUIET_S + 1
    assert vitals.complaints(1000) == ["the launcher has not looked at its processes for 31 s"]
