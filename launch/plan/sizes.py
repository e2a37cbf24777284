"""A model's sizes, from its config.json or a well-known shape, and how many parameters they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.bench.models import SHAPES
from shared.errors import ConfigError, ModelFolderError
from shared.model_config import check_config, read_object

# Of every Qwen2.5 model up to 3B; the larger ones pad it to 152,064.
QWEN_VOCABULARY = 151_936


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a decoder, as its config.json has them.

    qkv_bias, output_bias, mlp_bias: whether the projections have biases; head_norms: norms of queries and keys (Qwen3)
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False

    @property
    def query_width(self) -> int:
        """Of all heads together."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Of all key heads together, or all value heads."""
        return self.kv_heads * self.head_width

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, or of the output head."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        attention += self.qkv_bias * (self.query_width + 2 * self.kv_width) + self.output_bias * self.hidden
        mlp = 3 * self.hidden * self.intermediate + self.mlp_bias * (2 * self.intermediate + self.hidden)
        return attention + mlp + 2 * self.hidden + self.head_norms * 2 * self.head_width

    @property
    def parameters(self) -> int:
        """All of them, tied ones once."""
        return self.layers * self.layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def largest_parameter(self) -> int:
        """Elements of the largest tensor."""
        return max(self.embedding, self.hidden * self.intermediate, self.hidden * self.query_width)


def model_sizes(name: str, vocabulary: int = QWEN_VOCABULARY) -> ModelSizes:
    """Of a model folder, of which config.json alone is read, or of a shape of `SHAPES` with this vocabulary.

    Raises ConfigError for a name that is neither, ModelFolderError for a config.json without a model that can be
    trained.
    """
    if name in SHAPES:
        shape = SHAPES[name]
        return ModelSizes(
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            layers=shape.layers,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_width=shape.hidden // shape.heads,
            vocabulary=vocabulary,
            tied=shape.tied,
            qkv_bias=True,
        )
    if not (Path(name) / "config.json").is_file():
        raise ConfigError(f"{name} is neither a folder with a config.json nor one of the shapes {', '.join(SHAPES)}")
    return folder_sizes(Path(name))


def folder_sizes(folder: Path) -> ModelSizes:
    """Of a model folder, from its config.json alone; ModelFolderError where that is not one that can be trained."""
    vocabulary = check_config(folder)
    config = read_object(folder / "config.json")
    architecture = config["architectures"][0]
    hidden, heads = _size(folder, config, "hidden_size"), _size(folder, config, "num_attention_heads")
    bias = bool(config.get("attention_bias", False))
    return ModelSizes(
        hidden=hidden,
        intermediate=_size(folder, config, "intermediate_size"),
        layers=_size(folder, config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(folder, config, "num_key_value_heads", heads),
        head_width=_size(folder, config, "head_dim", hidden // heads),
        vocabulary=vocabulary,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "Qwen2ForCausalLM" or bias,
        output_bias=architecture != "Qwen2ForCausalLM" and bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        head_norms=architecture == "Qwen3ForCausalLM",
    )


def _size(folder: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or value < 1:
        raise ModelFolderError(f"{folder / 'config.json'} does not say how large the model is ({key}): is it whole?")
    return value
