"""A tiny model and a process group of one, shared by the learner's tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from random_batches import VOCABULARY
from safetensors.torch import load_file, save_file

from launch.processes import free_port

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with grouped-query attention and tied embeddings, float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # slow to import: only for the tests that need it

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    folder = tmp_path_factory.mktemp("model")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def single_process() -> None:
    """The environment of a process group of one."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


@pytest.fixture(scope="session")
def reference_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the policy's shape with other weights."""
    folder = tmp_path_factory.mktemp("reference") / "model"
    shutil.copytree(model_folder, folder)
    g = torch.Generator().manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    moved = {name: w + 0.05 * torch.randn(w.shape, generator=g) for name, w in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def _plain_linear() -> Iterator[None]:
    """ZeRO-3 replaces this function for the whole process."""
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear
