"""Keeps what libraries say while an engine starts off the screen, unless it fails to start."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_start() -> Iterator[None]:
    """Whatever goes to this process's stderr meanwhile is kept, and shown when an exception ends it.

    Processes that are started meanwhile go on writing where nobody reads, as long as they live. vLLM, unless it is
    imported already, says no more than errors from here on.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            _back(screen)
            log.seek(0)
            shutil.copyfileobj(log, sys.stderr.buffer)
            sys.stderr.flush()
            raise
        finally:
            _back(screen)
            os.close(screen)


def _back(screen: int) -> None:
    sys.stderr.flush()
    os.dup2(screen, 2)
