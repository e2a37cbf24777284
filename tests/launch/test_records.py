import json

import pytest

from launch.records import Guarded, Records, flat
from launch.supervisor import Origin, Restart


class Heard:
    def __init__(self, fails_at: int | None = None) -> None:
        self.steps: list[int] = []
        self._fails_at = fails_at

    def step(self, record) -> None:
        if record["step"] == self._fails_at:
            raise RuntimeError("a fault")
        self.steps.append(record["step"])

    def evaluation(self, record) -> None:
        self.steps.append(-record["version"])

    def restart(self, restart) -> None:
        self.steps.append(restart.number)


def write(path, steps):
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))


def test_what_is_on_record_up_to_a_version_is_past_and_what_comes_is_told_once(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    write(metrics, [1, 2, 3, 4])
    records, heard = Records(tmp_path, 2), Heard()
    assert [record["step"] for record in records.past_steps] == [1, 2]
    write(metrics, [1, 2])  # as the learner cuts it
    records.tell([heard])
    write(metrics, [1, 2, 3])
    records.tell([heard])
    records.tell([heard])
    assert heard.steps == [3]


def test_what_was_cut_off_and_has_grown_again_unseen_ends_nothing(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    write(metrics, [1, 2, 3])
    records, heard = Records(tmp_path, 1), Heard()
    metrics.write_text('{"step": 1}\n{"step": 2, "now": "a longer one"}\n{"step": 3}\n')
    records.tell([heard])
    assert heard.steps == [3]


def test_progress_is_the_furthest_step_and_the_tickets_that_each_worker_has_closed(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    write(metrics, [1, 2])
    records = Records(tmp_path, 2)
    assert records.progress["learner"] == 2
    step = {"step": 3, "workers": {"tickets_closed": {"rollout-0": 4, "rollout-1": 2}}}
    with metrics.open("a") as file:
        file.write(json.dumps(step) + "\n")
    records.tell([])
    with metrics.open("a") as file:  # a learner that has gone back makes it again
        file.write(json.dumps(step) + "\n")
    records.tell([])
    assert records.progress == {"learner": 3, "rollout-0": 8, "rollout-1": 4}


@pytest.mark.parametrize("damage", [b'{"st', b"\xff\n", b'{"other": 1}\n{"step": 3}\n', b'[]\n{"step": 3}\n'])
def test_what_is_torn_or_damaged_is_not_past_nor_what_follows(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damage)
    assert Records(tmp_path, 5).past_steps == [{"step": 1}]


def test_an_observer_that_fails_is_told_no_more_and_the_others_are(tmp_path):
    records, complaints = Records(tmp_path, 0), []
    failing, sound = Heard(fails_at=2), Heard()
    observers = [Guarded("the test", failing, complaints.append), sound]
    write(tmp_path / "metrics.jsonl", [1, 2, 3])
    records.tell(observers)
    for observer in observers:
        observer.restart(Restart("learner", "a fault", 7, 5, 0.0, Origin(1, 2)))
    assert failing.steps == [1]
    assert sound.steps == [1, 2, 3, 7]
    assert len(complaints) == 1
    assert "the test" in complaints[0]
    assert "a fault" in complaints[0]


def test_numbers_are_named_by_their_path():
    record = {"step": 3, "tasks": {"deduction": {"accuracy": 0.5}}, "none": None, "flag": True, "list": [1], "t": "x"}
    assert flat(record) == {"step": 3.0, "tasks/deduction/accuracy": 0.5}
    assert flat({"a": 1}, "evaluation/") == {"evaluation/a": 1.0}
