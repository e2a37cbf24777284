"""A tiny model and a process group of one, shared by the learner's tests."""

import os
from pathlib import Path

import pytest
import torch
from random_batches import VOCABULARY, free_port

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
