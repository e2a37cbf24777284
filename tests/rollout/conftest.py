"""Shared by the tests that talk to a real engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Here are the helpers of these tests; the engine's worker process imports the planted fault from here too.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_engine import EOS, LoopThread, save, start_engine, tiny_model
from transformers import Qwen2ForCausalLM

from rollout.engine import Engine


@pytest.fixture(scope="session")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def model() -> Qwen2ForCausalLM:
    """The float32 model of seed 0."""
    return tiny_model(seed=0)


@pytest.fixture(scope="session")
def engine(model: Qwen2ForCausalLM, loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that loaded `model` from its folder, which has tempting generation defaults; never synced."""
    folder = save(model, tmp_path_factory.mktemp("model"))
    tempting = {"temperature": 0.2, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.8, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(tempting | {"eos_token_id": [EOS, 77]}))
    engine = loop.run(start_engine(folder))
    yield engine
    loop.run(engine.shutdown())
