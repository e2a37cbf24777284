"""The model that a benchmark runs: a folder, or a well-known shape with random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import EnvironmentConfig
from shared.errors import ConfigError
from shared.model_folder import check_model_folder, check_weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Qwen2 model, all but its vocabulary."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool = True


SHAPES = {
    "tiny": Shape(hidden=64, intermediate=256, layers=2, heads=2, kv_heads=1),
    "small": Shape(hidden=128, intermediate=512, layers=4, heads=4, kv_heads=2),
    "qwen2.5-0.5b": Shape(hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2),
    "qwen2.5-1.5b": Shape(hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2),
    "qwen2.5-3b": Shape(hidden=2048, intermediate=11008, layers=36, heads=16, kv_heads=2),
    "qwen2.5-7b": Shape(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, tied=False),
}
FIRST_TOKEN = 3  # those before are padding, begin and end
_CONTEXT = 32768
_EOS = 2
# With so many the environment's prompts are as long as a real model's tokenizer makes them, some 140 tokens.
_TOKENIZER_TOKENS = 400


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """A model folder on disk, and what it is called in the report."""

    folder: Path
    name: str
    vocabulary: int

    def load(self, dtype: str) -> torch.nn.Module:
        """The model as the learner holds it, in `dtype`; on the GPU where there is one."""

        from learner.packed_model import load_model

        module: torch.nn.Module = load_model(self.folder, dtype)
        return module.to(compute_device()).eval()


@contextmanager
def bench_model(
    name: str, *, vocabulary: int, dtype: str, environment: EnvironmentConfig | None = None
) -> Iterator[BenchModel]:
    """The model folder `name`, or one made for the time of the benchmark with the shape of that name.

    vocabulary: of a made model; a folder has its own. environment: where there is one, a made model has a tokenizer
    for its prompts, and a folder must have one. Raises ConfigError for a name that is neither, ModelFolderError for a
    folder without a model.
    """
    if name in SHAPES:
        if vocabulary <= FIRST_TOKEN:
            raise ConfigError(f"--vocabulary {vocabulary} is too small: {FIRST_TOKEN + 1} at least")
        with tempfile.TemporaryDirectory(prefix="primezero-bench-") as folder:
            _make(Path(folder), SHAPES[name], vocabulary, dtype)
            if environment is not None:
                _add_tokenizer(Path(folder), environment, vocabulary)
            yield BenchModel(folder=Path(folder), name=name, vocabulary=vocabulary)
        return
    folder_given = Path(name)
    if not folder_given.is_dir():
        raise ConfigError(f"--model {name} is neither a folder nor one of the shapes {', '.join(SHAPES)}")
    if environment is None:
        check_weights(folder_given, "--model")
    else:
        check_model_folder(folder_given, "--model")
    yield BenchModel(folder=folder_given, name=folder_given.name, vocabulary=_vocabulary(folder_given))


def compute_device() -> str:
    """Where benchmarks compute: on the GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def parameter_count(module: torch.nn.Module) -> int:
    """Parameters of a module, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _vocabulary(folder: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).vocab_size)


def shape_config(shape: Shape, vocabulary: int) -> Any:
    """The configuration of a Qwen2 model of this shape."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=_EOS,
    )


def _make(folder: Path, shape: Shape, vocabulary: int, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(), torch.device(compute_device()):
        torch.manual_seed(0)
        # Made in the dtype itself: a 3B model in float32 would not fit where its bfloat16 does.
        model = AutoModelForCausalLM.from_config(shape_config(shape, vocabulary), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # which engine and learner have processes of their own for


def _add_tokenizer(folder: Path, environment: EnvironmentConfig, vocabulary: int) -> None:
    from launch.tiny_tokenizer import new_tokenizer
    from rollout.environment import make_environment

    tokenizer = new_tokenizer(make_environment(environment), min(vocabulary, _TOKENIZER_TOKENS), _CONTEXT)
    if len(tokenizer) > vocabulary:
        raise ConfigError(f"--vocabulary {vocabulary} is too small for the prompts: {len(tokenizer)} at least")
    tokenizer.save_pretrained(folder)
