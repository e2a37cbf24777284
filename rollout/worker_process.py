"""The rollout worker in a process of its own, forked from one that has imported vLLM, as its engine will be."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from rollout import fork_server
from rollout.engine_vllm import set_environment, set_title
from rollout.worker import WorkerSpec, run_worker
from shared.config import Config
from shared.processes import log_to_stderr

TITLE = "RolloutWorker"

log = logging.getLogger(__name__)


def run_worker_process(config: Config, spec: WorkerSpec, beat: Callable[[], None]) -> None:
    """As `run_worker`, in another process, which ends with this one. Raises ChildProcessError where it is killed."""
    set_environment(config.rollout)
    fork_server.start()
    messages, theirs = multiprocessing.Pipe(duplex=False)
    process = fork_server.context().Process(target=_work, args=(config, spec, theirs), name=TITLE)
    try:
        process.start()  # waits for the imports
    except EOFError as error:
        raise ChildProcessError("the process that imports vLLM died") from error
    theirs.close()
    failure: Exception | None = None
    try:
        while (message := messages.recv()) is None:
            beat()
        failure = message
    except EOFError:
        pass  # it has ended, well or killed
    process.join()
    if failure is not None:
        raise failure
    if process.exitcode:
        raise ChildProcessError(_how(process.exitcode))


def _work(config: Config, spec: WorkerSpec, messages: Connection) -> None:
    """The process's work: sends a None for each beat and, where it fails, the error at the end."""
    fork_server.end_with_starter()
    set_title(TITLE)
    log_to_stderr()
    try:
        run_worker(config, spec, lambda: messages.send(None))
    except Exception as error:
        log.exception("this process ends with an error")
        messages.send(error)
    os._exit(0)  # a thread that still waits for an engine to start would keep it


def _how(exitcode: int) -> str:
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
