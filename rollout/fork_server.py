"""A process that has imported vLLM, from which the engine's processes are forked: in moments, and sharing its memory.

Python's own fork server, with three additions: a forked process has the environment of the process that asked for it, a
forked process can ask for others, and none of them outlives the process that asked.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext
from typing import Any

from shared.processes import signal_at_parents_death

_PRELOADED = "rollout.preloaded"
# Read by the C library, OpenMP and PyTorch when a process begins or imports them: the server's are everyone's.
_READ_ONCE = ("LD_PRELOAD", "OMP_NUM_THREADS", "TORCH_COMPILE_DISABLE")
_READ_ONCE_PREFIXES = ("MALLOC_", "KMP_", "GOMP_")

_served: Mapping[str, str] | None = None


class _Process(ForkServerProcess):
    """A process with the environment that its starter has when it makes it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        tempfile.tempdir = None  # else the server's
        _server_is_parents()
        super().run()


class _Context(ForkServerContext):
    def __init__(self, changes: Mapping[str, str]) -> None:
        super().__init__()
        self._changes = changes

    def Process(self, *args: Any, **kwargs: Any) -> _Process:  # type: ignore[override]
        process = _Process(*args, **kwargs)
        process.environment |= self._changes
        return process


def start() -> None:
    """Have the server import vLLM, beside this process, which need not wait.

    It ends with the thread that calls this first. Does nothing where there is a server already.
    """
    global _served
    if _served is None and multiprocessing.forkserver.get_inherited_fds() is None:
        _served = _read_once()
        multiprocessing.set_forkserver_preload([_PRELOADED])
        with _environment(
            PYTHONSAFEPATH="1",  # the folder in which the command is given may have packages of the same names
            SPT_NOENV="1",  # a title that a process gives itself leaves its environment, and the mark in it, as it was
        ):
            multiprocessing.forkserver.ensure_running()


def context(**changes: str) -> ForkServerContext | SpawnContext:
    """Makes processes: forked from the server or, where that has been started in another environment, spawned.

    changes: of the environment, for forked ones
    """
    if _served != _read_once():
        return multiprocessing.get_context("spawn")
    return _Context(changes)


def end_with_starter() -> None:
    """Called in a process of a `context`: have it killed when the one that started it, or the server, ends."""
    starter = multiprocessing.parent_process()
    if starter is None:
        return
    signal_at_parents_death(signal.SIGKILL)
    # The kernel tells of the death of the server alone.
    threading.Thread(target=_end_after, args=(starter,), name="starter-watch", daemon=True).start()


def _end_after(starter: Any) -> None:
    starter.join()
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _read_once() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name in _READ_ONCE or name.startswith(_READ_ONCE_PREFIXES)
    }


def _server_is_parents() -> None:
    """Python would start another server for a forked process's own children."""
    global _served
    _served = _read_once()
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
