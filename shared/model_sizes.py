"""A model's sizes, how many parameters they make, and what its weights are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.model_config import check_config

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


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
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the names that a model folder has them under, in layer order; of tied ones the embedding."""
        D, H, Q, K = self.hidden, self.intermediate, self.query_width, self.kv_width
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (D,),
            "self_attn.q_proj.weight": (Q, D),
            "self_attn.k_proj.weight": (K, D),
            "self_attn.v_proj.weight": (K, D),
            "self_attn.o_proj.weight": (D, Q),
            "post_attention_layernorm.weight": (D,),
            "mlp.gate_proj.weight": (H, D),
            "mlp.up_proj.weight": (H, D),
            "mlp.down_proj.weight": (D, H),
        }
        if self.qkv_bias:
            layer |= {"self_attn.q_proj.bias": (Q,), "self_attn.k_proj.bias": (K,), "self_attn.v_proj.bias": (K,)}
        if self.output_bias:
            layer |= {"self_attn.o_proj.bias": (D,)}
        if self.mlp_bias:
            layer |= {"mlp.gate_proj.bias": (H,), "mlp.up_proj.bias": (H,), "mlp.down_proj.bias": (D,)}
        if self.head_norms:
            layer |= {"self_attn.q_norm.weight": (self.head_width,), "self_attn.k_norm.weight": (self.head_width,)}
        return {
            EMBEDDING: (self.vocabulary, D),
            **{f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()},
            "model.norm.weight": (D,),
            **({} if self.tied else {HEAD: (self.vocabulary, D)}),
        }

    @property
    def largest_parameter(self) -> int:
        """Elements of the largest tensor."""
        return max(self.embedding, self.hidden * self.intermediate, self.hidden * self.query_width)


def folder_sizes(folder: Path) -> ModelSizes:
    """Of a model folder, from its config.json alone; ModelFolderError where that is not one that can be trained."""
    config = check_config(folder)
    architecture = config.architecture
    bias = config.attention_bias and architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
    return ModelSizes(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.kv_heads,
        head_width=config.head_width,
        vocabulary=config.vocab_size,
        tied=config.tie_word_embeddings,
        qkv_bias=architecture == "Qwen2ForCausalLM" or bias,
        output_bias=bias,
        mlp_bias=config.mlp_bias and architecture == "LlamaForCausalLM",
        head_norms=architecture == "Qwen3ForCausalLM",
    )
