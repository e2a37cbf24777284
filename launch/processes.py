"""What each process of a run does first: keep what it writes to itself, and log into the run folder."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path


def be_private() -> None:
    """Files made from here on, by this process and its children, are for this user alone.

    A run is gone on with only from what no other user can have written.
    """
    os.umask(0o077)


def log_to_file(path: Path) -> None:
    """Send this process's stdout and stderr, and those of its children, to a file; log there too."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
