"""A model folder's config.json: whether the model is one that can be trained, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from shared.errors import ModelFolderError

# Known to both the engine and the learner, under the same parameter names, each with a weight sync behind it; by what
# transformers calls them.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_MAX_BYTES = 2**28
_Content = TypeVar("_Content")
_Size = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Dtype = Literal["float32", "float16", "bfloat16", "float64"]


class ModelConfig(msgspec.Struct, frozen=True):
    """What engine and learner read in a config.json, of the types that they take; other keys are not looked at.

    The defaults are those of transformers' classes. Raises ModelFolderError where it is read, see `check_config`.
    """

    architectures: tuple[str, ...]
    model_type: str
    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | msgspec.UnsetType | None = msgspec.UNSET
    head_dim: _Size | None = None
    max_position_embeddings: _Size | msgspec.UnsetType = msgspec.UNSET
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    use_cache: bool = True
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    use_sliding_window: bool | msgspec.UnsetType = msgspec.UNSET
    sliding_window: int | msgspec.UnsetType | None = msgspec.UNSET
    layer_types: tuple[str, ...] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    dtype: _Dtype | None = None
    torch_dtype: _Dtype | None = None

    @property
    def architecture(self) -> str:
        """The one that transformers builds; all that are named are the same."""
        return self.architectures[0]

    @property
    def kv_heads(self) -> int:
        """Heads of keys, and of values."""
        unset = {"MistralForCausalLM": 8, "Qwen2ForCausalLM": 32, "Qwen3ForCausalLM": 32}
        if self.num_key_value_heads is msgspec.UNSET:
            return unset.get(self.architecture, self.num_attention_heads)
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Numbers that a head has."""
        unset = 128 if self.architecture == "Qwen3ForCausalLM" else self.hidden_size // self.num_attention_heads
        return self.head_dim or unset

    @property
    def slides(self) -> bool:
        """Whether some layer looks back only so far, to the engine or to the learner.

        Qwen's classes have a switch beside the width, off by default; Mistral's has a width by default, and no switch.
        """
        if self.architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
            return self.use_sliding_window is True or any(kind != "full_attention" for kind in self.layer_types or ())
        if self.architecture == "MistralForCausalLM":
            return self.sliding_window is not None
        return isinstance(self.sliding_window, int) and self.use_sliding_window is not False


def check_config(folder: Path) -> ModelConfig:
    """What config.json says. ModelFolderError, with the reason, unless it is of a model that can be trained."""
    path = folder / "config.json"
    content = read_object(path)
    if content.get("auto_map"):
        raise ModelFolderError(
            f"{path} has the model built by code of its own (auto_map), and code of a model folder is never run: use a "
            f"model of a built-in architecture, {_listed(ARCHITECTURES)}"
        )
    named = content.get("architectures")
    named = named if isinstance(named, list) else []
    if len(named) != 1 or named[0] not in ARCHITECTURES:
        raise ModelFolderError(
            f"{path} names the architecture {_listed(map(str, named)) or 'none'}, which is not supported: it must be "
            f"a causal language model of {_listed(ARCHITECTURES)}"
        )
    if content.get("quantization_config"):
        raise ModelFolderError(f"the model in {folder} is quantized, and cannot be trained: use one that is not")
    config = converted(path, content, ModelConfig)
    if config.slides:
        raise ModelFolderError(f"{path} has a sliding window, which the learner does not support: use another model")
    _check_sizes(path, config)
    return config


def _check_sizes(path: Path, config: ModelConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    for wrong, what in (
        (config.model_type != ARCHITECTURES[config.architecture], f"model_type={config.model_type!r}"),
        (config.architecture == "LlamaForCausalLM" and config.hidden_size % heads, f"num_attention_heads={heads}"),
        (heads % kv_heads, f"num_key_value_heads={kv_heads}"),
        (config.head_width % 2, f"heads of {config.head_width} numbers"),
        (
            len(config.layer_types or "") not in (0, config.num_hidden_layers),
            f"{len(config.layer_types or '')} layer_types",
        ),
    ):
        if wrong:
            raise ModelFolderError(
                f"{path} says {what}, which does not go with the rest of it ({config.architecture}, "
                f"hidden_size={config.hidden_size}, num_attention_heads={heads}, "
                f"num_hidden_layers={config.num_hidden_layers}): put the model's own there"
            )


def converted(path: Path, content: object, kind: type[_Content]) -> _Content:
    """What was read from `path` as a `kind`; ModelFolderError, naming the key, where it is of another shape."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ModelFolderError(f"{path} is not as libraries write it ({error}): put the model's own there") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where there is no such file; ModelFolderError where it is something else."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelFolderError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: is it what its name says?")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"cannot read {path}: {error}; download it again") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} is not a JSON object: download it again")
    return content


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
