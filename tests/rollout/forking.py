"""A program that forks a process from the fork server, which forks another, and waits; run by test_fork_server.py.

Prints its own id, the server's, and those of the two, each with its own parent's and what it finds in its environment.
"""

import os
import sys
import time

from rollout import fork_server

TOLD = "PRIMEZERO_TEST_TOLD"


def say(name):
    words = (name, os.getpid(), os.getppid(), os.environ.get(TOLD), "json.tool" in sys.modules)
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


def first():
    fork_server.end_with_starter()
    say("first")
    os.environ[TOLD] = "by the first"
    second_process = fork_server.context().Process(target=second)
    second_process.start()
    second_process.join()


def second():
    fork_server.end_with_starter()
    say("second")
    time.sleep(300)


if __name__ == "__main__":
    fork_server._PRELOADED = "json.tool"
    fork_server.start()
    os.environ[TOLD] = "by the main process"
    if "other environment" in sys.argv:
        os.environ["OMP_NUM_THREADS"] = "7"
    process = fork_server.context().Process(target=first)
    process.start()
    say("main")
    process.join()
