"""Model folders that hold next to nothing, written byte by byte so that they can be broken in every way."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

VOCABULARY = 8
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCABULARY,
    "hidden_size": 2,
    "intermediate_size": 3,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
EMBEDDING = "model.embed_tokens.weight"
_LAYER = {
    "self_attn.q_proj.weight": (32, 2),
    "self_attn.q_proj.bias": (32,),
    "self_attn.k_proj.weight": (32, 2),
    "self_attn.k_proj.bias": (32,),
    "self_attn.v_proj.weight": (32, 2),
    "self_attn.v_proj.bias": (32,),
    "self_attn.o_proj.weight": (2, 32),
    "mlp.gate_proj.weight": (3, 2),
    "mlp.up_proj.weight": (3, 2),
    "mlp.down_proj.weight": (2, 3),
    "input_layernorm.weight": (2,),
    "post_attention_layernorm.weight": (2,),
}
SHAPES = {
    EMBEDDING: (VOCABULARY, 2),
    **{f"model.layers.{number}.{name}": shape for number in (0, 1) for name, shape in _LAYER.items()},
    "model.norm.weight": (2,),
}


def safetensors_bytes(shapes: Mapping[str, Sequence[int]], **changes: object) -> bytes:
    """A file of float32 zeros; changes: to every entry of its header."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]} | changes
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def make_model_folder(folder: Path) -> Path:
    """A folder that passes the checks; no library could load it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(SHAPES))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def make_sharded_folder(folder: Path) -> Path:
    """The same weights in two files and an index."""
    make_model_folder(folder)
    (folder / "model.safetensors").unlink()
    places = {}
    for number, names in enumerate(([EMBEDDING], [name for name in SHAPES if name != EMBEDDING]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        places |= dict.fromkeys(names, file)
        (folder / file).write_bytes(safetensors_bytes({name: SHAPES[name] for name in names}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def engine_files(folder: Path) -> list[Path]:
    """Those that vLLM loads, as tests/rollout/test_engine_vllm.py compares with its own choice."""
    found = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(".")]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        found = [path for path in found if path.name in named]
    return found
