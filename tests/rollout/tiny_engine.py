"""A tiny random model, and an engine that synchronous tests and a weight sender can talk to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rollout.engine import Engine, SyncTimings
from shared.config import RolloutConfig, SyncConfig
from shared.episodes import Float32Array

T = TypeVar("T")

VOCABULARY = 378
EOS = 2
NEVER_SAMPLED = VOCABULARY + 1
MAX_MODEL_LEN = 512
ROLLOUT = RolloutConfig(max_sequences=32, start_timeout_s=500, request_timeout_s=300)


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T], timeout_s: float = 550) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(timeout_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class DirectClient:
    """The weight-sync client without a network between."""

    members: Sequence[object] = ("the engine",)

    def __init__(self, loop: LoopThread, engine: Engine) -> None:
        self._loop, self._engine = loop, engine
        self.calls: list[str] = []
        self.update_info: dict[str, Any] = {}
        self.timings: SyncTimings | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append("init")
        self._loop.run(self._engine.init_weight_transfer(init_info))

    def start_weight_update(self) -> None:
        self.calls.append("start")
        self._loop.run(self._engine.start_weight_update())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append("update")
        self.update_info = update_info
        self._loop.run(self._engine.update_weights(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append("finish")
        assert weight_version is not None
        self.timings = self._loop.run(self._engine.finish_weight_update(int(weight_version)))


def tiny_model(seed: int, dtype: torch.dtype = torch.float32, *, tied: bool = True, eos: int = EOS) -> Qwen2ForCausalLM:
    """A random Qwen2 whose biases and norms are random too, so that none can be forgotten unseen."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=256,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=eos,
        attn_implementation="eager",
    )
    model = Qwen2ForCausalLM(config)
    change_weights(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def change_weights(model: torch.nn.Module, seed: int) -> None:
    """Replace every weight by a random one, large enough that stale ones show."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.3 * values if "norm" in name else 0.05 * values)


def save(model: Qwen2ForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def reference_logprobs(model: Qwen2ForCausalLM, tokens: list[int], temperature: float = 1.0) -> Float32Array:
    """transformers' log-probabilities of tokens[1:]."""
    logits = model(torch.tensor([tokens], device=model.device)).logits[0, :-1].float().cpu() / temperature
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])
    return np.asarray(chosen[:, 0], dtype=np.float32)


def text(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, VOCABULARY, count)]


async def start_engine(
    folder: Path,
    dtype: str = "float32",
    *,
    rollout: RolloutConfig = ROLLOUT,
    sync: SyncConfig | None = None,
    transport: str = "shm",
) -> Engine:
    return await Engine.start(
        folder,
        dtype=dtype,
        seed=0,
        rollout=rollout,
        max_model_len=MAX_MODEL_LEN,
        sync=sync or SyncConfig(),
        transport=transport,
    )
