import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_records import step_record

from launch.display import summary_lines
from launch.display.plain import PlainDisplay
from launch.records import Records
from launch.restart_log import RestartLog
from launch.supervisor import Origin, Restart
from learner.progress import Progress, Summary
from shared.config_file import load_config
from shared.episodes import Evaluation, Task, TaskAccuracy

ROOT = Path(__file__).parents[2]


def evaluation(version: int, accuracy: float, held_out: float | None) -> Evaluation:
    def results(value: float) -> dict[Task, TaskAccuracy]:
        return {Task.DEDUCTION: TaskAccuracy(10, value, 0.0, 4.0)}

    return Evaluation(version, results(accuracy), {} if held_out is None else results(held_out))


@pytest.mark.parametrize(
    ("held_out", "line"),
    [
        (None, "     evaluation at version 4: accuracy 0.750  (deduction 0.75)"),
        (0.5, "     evaluation at version 4: accuracy 0.750  (deduction 0.75)  held out 0.500"),
    ],
)
def test_an_evaluation_is_a_line_with_what_is_held_out_if_anything_is(tmp_path, capsys, held_out, line):
    records, display = Records(tmp_path, 0), PlainDisplay(10)
    progress = Progress(load_config(None), tmp_path)
    progress.evaluated(evaluation(4, 0.75, held_out))
    progress.close()
    records.tell([display])
    records.tell([display])
    assert capsys.readouterr().out.splitlines() == [line]


def test_a_line_that_is_still_being_written_waits(tmp_path, capsys):
    records, display = Records(tmp_path, 0), PlainDisplay(10)
    record = {"version": 1, "accuracy": 0.5, "held_out_accuracy": None, "tasks": {"deduction": {"accuracy": 0.5}}}
    written = json.dumps(record) + "\n"
    path = tmp_path / "evaluations.jsonl"
    path.write_text(written[:20])
    records.tell([display])
    assert capsys.readouterr().out == ""
    path.write_text(written)
    records.tell([display])
    assert "version 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("restart", "line"),
    [
        (
            Restart("rollout-0", "rollout-0 failed: a fault", 1, 5, 0.0, Origin(lineage=2)),
            "rollout-0 failed: a fault; rollout-0 is started again (1 of at most 5 times)",
        ),
        (
            Restart("learner", "the process of learner-1 died", 3, 5, 2.0, Origin(lineage=3, version=40)),
            "the process of learner-1 died; learner is started again from step 40, lineage 3, in 2 s "
            "(3 of at most 5 times)",
        ),
        (
            Restart("learner", "the process of learner-0 died", 1, 5, 0.0, Origin(lineage=1, version=0)),
            "the process of learner-0 died; learner is started again from the beginning, lineage 1 "
            "(1 of at most 5 times)",
        ),
    ],
)
def test_a_restart_is_a_line_with_what_ended_why_and_what_it_goes_on_from(capsys, restart, line):
    PlainDisplay(10, quiet=True).restart(restart)
    assert capsys.readouterr().out.splitlines() == [line]


def test_restarts_are_on_record_over_all_starts_of_a_run(tmp_path):
    path = tmp_path / "restarts.jsonl"
    for number, origin in ((1, Origin(0)), (2, Origin(1, 40))):
        with RestartLog(path) as log:
            log.write(Restart("learner" if origin.version else "rollout-0", "a fault", number, 5, number - 1.0, origin))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    times = [datetime.datetime.fromisoformat(record.pop("time")) for record in (first, second)]
    assert times[0] <= times[1] <= datetime.datetime.now(datetime.UTC)
    about = {"reason": "a fault"}
    assert first == about | {"process": "rollout-0", "number": 1, "delay_s": 0, "lineage": 0, "version": None}
    assert second == about | {"process": "learner", "number": 2, "delay_s": 1, "lineage": 1, "version": 40}


def test_a_step_is_a_line_though_a_number_of_it_was_not_finite(capsys):
    record = step_record(2)
    record["learner"]["entropy"] = None
    PlainDisplay(10).step(record)
    assert capsys.readouterr().out == (
        "step    2/10  solver 0.02  valid proposals 0.50  entropy nan  staleness 1.00  2.00 s (waiting 0.50)\n"
    )


@pytest.mark.parametrize(
    ("output", "says"), [("| cat", "stopping after this step"), ("| true", ""), (">&-", ""), ("> /dev/full", "")]
)
def test_that_a_run_stops_is_said_and_a_reader_that_has_gone_is_no_error(output, says):
    code = f"""
import time
from pathlib import Path
from launch.display import open_display
from launch.records import Records
from launch.vitals import Vitals
from shared.config_file import load_config
display = open_display(load_config(None), Records(Path("none"), 0), Vitals([]))
time.sleep({0.5 if "true" in output else 0})
display.stopping()
"""
    command = f'"$PYTHON" -c "$CODE" {output}'
    environment = os.environ | {"PYTHON": sys.executable, "CODE": code}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith(says)


def summary(held_out_after: float | None) -> Summary:
    return Summary(
        accuracy_before=0.25,
        accuracy_after=0.75,
        accuracy_best=0.875,
        per_task={"deduction": {"before": 0.25, "after": 0.75}},
        held_out_before=None if held_out_after is None else 0.125,
        held_out_after=held_out_after,
        steps=7,
        wall_s=60.0,
        episodes=100,
        tokens_generated=1000,
        weight_syncs=8,
        seed=3,
    )


def test_the_end_of_a_run_is_before_and_after():
    lines = summary_lines(summary(0.5))
    assert [line.split()[:3] for line in lines[2:]] == [
        ["deduction", "0.250", "0.750"],
        ["mean", "0.250", "0.750"],
        ["held", "out", "0.125"],
    ]
    assert lines[-1].endswith("0.500")
    assert not any("held out" in line for line in summary_lines(summary(None)))
