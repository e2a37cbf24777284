"""Keeps what libraries say while an engine starts and runs off the screen, unless it fails."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


class EngineNoise:
    """What is kept of it, in a file without a name."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    @contextmanager
    def kept(self) -> Iterator[IO[str]]:
        """Whatever goes to this process's stderr meanwhile is kept; and, as long as they live, that of the processes
        that are started meanwhile. What still has to be said goes to the file that is given."""
        sys.stderr.flush()
        with os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8") as screen:
            os.dup2(self._file.fileno(), 2)
            try:
                yield screen
            finally:
                sys.stderr.flush()
                screen.flush()
                os.dup2(screen.fileno(), 2)


@contextmanager
def engine_noise() -> Iterator[EngineNoise]:
    """It is shown when an error ends this; not where a person, or a reader who has seen enough, does."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryFile() as file:
        try:
            yield EngineNoise(file)
        except BrokenPipeError:
            raise
        except Exception:
            file.seek(0)
            sys.stderr.flush()
            shutil.copyfileobj(file, sys.stderr.buffer)
            sys.stderr.flush()
            raise
