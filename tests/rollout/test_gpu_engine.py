"""On a GPU: graphs that are replayed with new weights, CUDA IPC between real processes, an engine that sleeps."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_engine import (
    EOS,
    ROLLOUT,
    DirectClient,
    LoopThread,
    change_weights,
    reference_logprobs,
    save,
    start_engine,
    text,
    tiny_model,
)

from learner.weight_sender import WeightSender
from shared.config import RolloutConfig

PROBE = text(0, 120)
# Means over tokens: single ones differ by more, since both compute in bfloat16 with kernels of their own.
TOLERANCE = 0.05
CHANGED = 0.3

pytestmark = [pytest.mark.gpu, pytest.mark.integration]


class Setup:
    """An engine on the GPU, the learner's model beside it, and the sender between them."""

    def __init__(self, loop: LoopThread, folder: Path, rollout: RolloutConfig, *, tied: bool) -> None:
        self.loop = loop
        self.model = tiny_model(30, torch.bfloat16, tied=tied)
        self.engine = loop.run(start_engine(save(self.model, folder), "bfloat16", rollout=rollout, transport="ipc"))
        self.model.to("cuda")
        self.sender = WeightSender(
            DirectClient(loop, self.engine), self.model, dtype=torch.bfloat16, transport="ipc", buffer_bytes=100_000
        )
        self.sender.connect()
        self.version = 0

    def sync(self, seed: int) -> None:
        change_weights(self.model, seed)
        self.version += 1
        self.sender.send(self.version)

    def score(self) -> np.ndarray:
        return self.loop.run(self.engine.score(PROBE, f"probe-{secrets.token_hex(4)}"))

    def error(self) -> float:
        """Of prompts, which no graph computes."""
        return difference(self.score(), reference_logprobs(self.model, PROBE))

    def sampled_error(self, seed: int) -> float:
        """Of sampled tokens, one after the other, by replayed graphs where there are any."""
        prompt = text(seed, 40)
        call = self.engine.generate(
            prompt, n=4, temperature=1.0, max_tokens=48, seed=seed, request_id=f"sampled-{secrets.token_hex(4)}"
        )
        errors = []
        for sample in self.loop.run(call):
            assert len(sample.token_ids) == 48 or sample.token_ids[-1] == EOS
            reference = reference_logprobs(self.model, prompt + sample.token_ids.tolist())[len(prompt) - 1 :]
            errors.append(difference(sample.logprobs, reference))
        return float(np.mean(errors))

    def close(self) -> None:
        self.sender.close()
        self.loop.run(self.engine.shutdown())


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


CASES = {
    "graphs": ({}, True),
    "graphs, untied": ({}, False),
    "eager": ({"cuda_graphs": False}, True),
    "alternate": ({"colocation": "alternate"}, True),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def setup(request: pytest.FixtureRequest, loop: LoopThread, tmp_path: Path) -> Iterator[Setup]:
    changes, tied = request.param
    setup = Setup(loop, tmp_path, ROLLOUT.model_copy(update={"gpu_cache_gib": 1.0, **changes}), tied=tied)
    yield setup
    setup.close()


def test_a_synced_engine_samples_with_the_new_weights(setup: Setup) -> None:
    assert setup.error() < TOLERANCE
    assert setup.sampled_error(seed=0) < TOLERANCE
    for seed in (1, 2):
        before = setup.score()
        setup.sync(seed)
        assert difference(setup.score(), before) > CHANGED, "the weights hardly changed: nothing is shown"
        assert setup.error() < TOLERANCE
        assert setup.sampled_error(seed) < TOLERANCE


@pytest.mark.parametrize("setup", [CASES["alternate"]], indirect=True, ids=["alternate"])
def test_an_engine_that_sleeps_gives_its_memory_away_and_wakes_with_new_weights(setup: Setup) -> None:
    for seed, for_update in ((1, False), (3, True)):
        setup.sync(seed)
        free, _ = torch.cuda.mem_get_info()
        setup.loop.run(setup.engine.sleep(for_update=for_update))
        freed = torch.cuda.mem_get_info()[0] - free
        assert freed > 0.9 * 2**30, f"{freed} bytes"
        setup.sync(seed + 1)
        assert setup.error() < TOLERANCE
        assert setup.sampled_error(seed + 1) < TOLERANCE
    setup.loop.run(setup.engine.sleep())
    setup.loop.run(setup.engine.wake())
    assert setup.error() < TOLERANCE
