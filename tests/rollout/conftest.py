"""Shared by the tests that talk to a real engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Here are the helpers of these tests; the engine's worker process imports the planted fault from here too.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_engine import LoopThread


@pytest.fixture(scope="session")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()
