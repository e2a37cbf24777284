"""The engine adapter, on a real engine whose model folder has tempting generation defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tiny_engine import EOS, LoopThread, reference_logprobs, save, start_engine, text, tiny_model
from transformers import Qwen2ForCausalLM

from rollout.engine import Engine
from rollout.engine_link import Link
from shared.config import RolloutConfig
from shared.errors import EngineError
from shared.model_folder import stop_tokens

GREEDY = {"n": 1, "temperature": 0.0, "seed": 0}


def greedy_reference(model: Qwen2ForCausalLM, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.integration
def test_greedy_is_transformers_greedy(model: Qwen2ForCausalLM, engine: Engine, loop: LoopThread) -> None:
    prompt = text(1, 40)
    [sample] = loop.run(engine.generate(prompt, max_tokens=24, request_id="greedy", **GREEDY))
    expected = greedy_reference(model, prompt, 24)
    ends = [i for i, token in enumerate(expected) if token in (EOS, 77)]
    assert sample.token_ids.tolist() == expected[: ends[0] + 1 if ends else 24]
    assert sample.token_ids.dtype == np.int32
    assert sample.logprobs.dtype == np.float32


@pytest.mark.integration
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_of_the_sampled_distribution_and_model_defaults_are_ignored(
    model: Qwen2ForCausalLM, engine: Engine, loop: LoopThread, temperature: float
) -> None:
    prompt = text(2, 40)
    samples = loop.run(
        engine.generate(
            prompt, n=4, temperature=temperature, max_tokens=48, seed=2**63 - 1, request_id=f"t{temperature}"
        )
    )
    assert len({tuple(sample.token_ids) for sample in samples}) == 4
    for sample in samples:
        reference = reference_logprobs(model, prompt + sample.token_ids.tolist(), temperature)[len(prompt) - 1 :]
        assert np.abs(sample.logprobs - reference).max() < 1e-4
        assert sample.logprobs.min() < -3, "improbable tokens never drawn: top_k or a temperature was applied"
        assert [(span.version, span.start, span.end) for span in sample.spans] == [(0, 0, len(sample.token_ids))]


@pytest.mark.integration
def test_same_seed_same_samples(engine: Engine, loop: LoopThread) -> None:
    def draw(seed: int, name: str) -> list[list[int]]:
        call = engine.generate(text(3, 40), n=2, temperature=1.0, max_tokens=16, seed=seed, request_id=name)
        return [sample.token_ids.tolist() for sample in loop.run(call)]

    assert draw(5, "a") == draw(5, "b")
    assert draw(5, "c") != draw(500, "d")


@pytest.mark.integration
def test_stop_token_is_included_and_truncation_is_told_apart(engine: Engine, loop: LoopThread) -> None:
    samples = loop.run(
        engine.generate(text(4, 40), n=32, temperature=2.0, max_tokens=200, seed=9, request_id="stop"),
    )
    stopped = [sample for sample in samples if not sample.truncated]
    assert stopped
    for sample in samples:
        inside, last = sample.token_ids[:-1], int(sample.token_ids[-1])
        assert not set(inside.tolist()) & {EOS, 77}
        if sample.truncated:
            assert len(sample.token_ids) == 200
        else:
            assert last in (EOS, 77)


@pytest.mark.integration
def test_score_agrees_with_transformers(model: Qwen2ForCausalLM, engine: Engine, loop: LoopThread) -> None:
    tokens = text(5, 200)
    first, second = (loop.run(engine.score(tokens, f"score-{i}")) for i in range(2))
    assert np.abs(first - reference_logprobs(model, tokens)).max() < 1e-4
    np.testing.assert_array_equal(first, second)


@pytest.mark.integration
def test_what_does_not_fit_is_refused(engine: Engine, loop: LoopThread) -> None:
    with pytest.raises(EngineError, match="do not fit"):
        loop.run(engine.generate(text(6, 500), max_tokens=13, request_id="long", **GREEDY))
    with pytest.raises(EngineError, match="cannot score"):
        loop.run(engine.score(text(6, 512), "long"))
    with pytest.raises(EngineError, match="temperature"):
        loop.run(engine.generate(text(6, 5), n=1, temperature=3.0, max_tokens=5, seed=0, request_id="hot"))


@pytest.mark.integration
def test_late_request_is_aborted(engine: Engine, loop: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine._requests.deadlines, "limit_s", 0.05)
        with pytest.raises(EngineError, match="request_timeout_s"):
            loop.run(engine.generate(text(7, 40), n=8, temperature=1.0, max_tokens=400, seed=1, request_id="late"))
    loop.run(engine.check_alive())
    assert engine._link.llm.get_num_unfinished_requests() == 0


@pytest.mark.integration
def test_start_gives_up_in_time_and_leaves_no_process(engine: Engine, loop: LoopThread, tmp_path: Path) -> None:
    folder = save(tiny_model(seed=0), tmp_path)
    limits = RolloutConfig(start_timeout_s=0.5)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(EngineError, match="start_timeout_s"):
        loop.run(start_engine(folder, rollout=limits))
    assert set(psutil.Process().children(recursive=True)) <= before


def test_importing_the_engine_does_not_import_vllm() -> None:
    code = "import sys, rollout.engine, learner.weight_sender; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_insecure_serialization_is_refused(loop: LoopThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny_model(seed=0), tmp_path)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    with pytest.raises(EngineError, match="VLLM_ALLOW_INSECURE_SERIALIZATION"):
        loop.run(start_engine(tmp_path))


def test_stop_tokens_come_from_model_generation_and_tokenizer_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 9, "content": "<end>"}]}')
    assert stop_tokens(tmp_path) == [5, 7, 9]


async def test_of_an_engine_that_has_died_it_is_said_where_to_look():
    from vllm.v1.engine.exceptions import EngineDeadError

    async def dead() -> None:
        raise EngineDeadError

    with pytest.raises(EngineError, match="waking up: EngineCore has died, and the log says of what"):
        await Link(None).call("waking up", dead(), 5)
