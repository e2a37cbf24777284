import json
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from run_records import evaluation_record, step_record

from launch.monitor import Monitor
from launch.processes import free_port
from launch.records import Records
from launch.supervisor import Origin, Restart
from launch.vitals import Vitals
from shared.config_records import MonitorConfig
from shared.errors import PlacementError


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_the_last_step_and_evaluation_with_labels():
    port, vitals = free_port(), Vitals(["learner-0", "rollout-0"])
    vitals.look({"learner-0"}, {"learner-0": 1}, {"learner-0": 4096, "ray": 1})
    with Monitor(MonitorConfig(port=port), vitals) as monitor:
        monitor.step(step_record(7))
        monitor.evaluation(evaluation_record(5))
        monitor.restart(Restart("rollout-0", "a fault", 1, 5, 0.0, Origin(1)))
        status, text = get(port, "/metrics")
    found = samples(text)
    assert status == 200
    assert found["primezero_step",] == 7
    assert found["primezero_tasks_accuracy", "deduction"] == 0.07
    assert found["primezero_cells_reward", "solver", "induction"] == -0.25
    assert found["primezero_evaluation_version",] == 5
    assert found["primezero_evaluation_tasks_accuracy", "deduction"] == 0.5
    assert found["primezero_process_up", "learner-0"] == 1
    assert found["primezero_process_up", "rollout-0"] == 0
    assert found["primezero_process_resident_bytes", "learner-0"] == 4096
    assert ("primezero_process_resident_bytes", "ray") not in found
    assert found["primezero_restarts", "rollout-0"] == 1
    assert found["primezero_restarts", "learner"] == 0


def test_what_is_held_out_is_told_task_by_task_beside_its_mean():
    tasks = {"deduction": {"accuracy": 0.25}, "induction": {"accuracy": 0.75}}
    with Monitor(MonitorConfig(port=free_port()), Vitals([])) as monitor:
        monitor.evaluation(evaluation_record(5) | {"held_out": tasks, "held_out_accuracy": 0.5})
        found = samples(monitor.answer("/metrics")[2].decode())
    assert found["primezero_evaluation_held_out_tasks_accuracy", "deduction"] == 0.25
    assert found["primezero_evaluation_held_out_tasks_accuracy", "induction"] == 0.75
    assert found["primezero_evaluation_held_out_accuracy",] == 0.5


def test_a_resumed_run_has_the_numbers_that_it_goes_on_from(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step_record(step)) + "\n" for step in (1, 2, 3)))
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(evaluation_record(2)) + "\n")
    with Monitor(MonitorConfig(port=free_port()), Vitals([])) as monitor:
        monitor.catch_up(Records(tmp_path, 2))
        found = samples(monitor.answer("/metrics")[2].decode())
    assert found["primezero_step",] == 2
    assert found["primezero_evaluation_version",] == 2


def test_healthz_names_who_is_not_well():
    port, vitals = free_port(), Vitals(["learner-0", "rollout-0"])
    with Monitor(MonitorConfig(port=port), vitals):
        vitals.look({"learner-0"}, {"learner-0": 1}, {})
        assert get(port, "/healthz") == (503, "rollout-0 does not run\n")
        vitals.look({"learner-0", "rollout-0"}, {"learner-0": 1, "rollout-0": 1}, {})
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/etc/passwd")[0] == 404


def test_a_port_in_use_is_said_before_anything_starts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PlacementError, match=r"monitor\.port"):
            Monitor(MonitorConfig(port=port), Vitals([]))
