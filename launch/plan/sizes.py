"""A model's sizes, of a folder or a well-known shape."""

from __future__ import annotations

from pathlib import Path

from launch.bench.models import SHAPES
from shared.errors import ConfigError
from shared.model_sizes import ModelSizes, folder_sizes

# Of every Qwen2.5 model up to 3B; the larger ones pad it to 152,064.
QWEN_VOCABULARY = 151_936


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
