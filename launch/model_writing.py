"""Writing Hugging Face model folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def make_readable(folder: Path) -> None:
    """The modes of an ordinary folder: temporary folders, and safetensors' files, are the owner's alone."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """While models are loaded and saved."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
