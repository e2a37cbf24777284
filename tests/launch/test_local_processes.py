"""What is remembered of a run's processes on this machine, once their ids are others'."""

import subprocess
import sys

import psutil

from launch.local_processes import LocalProcesses
from launch.marked_processes import VARIABLE


def test_memory_of_a_process_that_now_has_the_id_of_one_that_has_ended_is_not_counted(tmp_path):
    local = LocalProcesses(tmp_path)
    command = [sys.executable, "-c", "print(flush=True); input()"]
    child = subprocess.Popen(
        command, env={VARIABLE: local.mark("learner-0")}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    (noted,) = local.note()
    try:
        assert local.resident_bytes()["learner-0"] > 10**6
        noted._ident = (noted.pid, 1.0)  # as noted, it had begun at another time
        assert noted != psutil.Process(noted.pid)
        assert local.resident_bytes()["learner-0"] == 0
    finally:
        child.communicate()
