"""Model folders that hold next to nothing, written byte by byte so that they can be broken in every way."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

VOCABULARY = 8
CONFIG = {"architectures": ["Qwen2ForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": 2, "eos_token_id": 2}
EMBEDDING = "model.embed_tokens.weight"
SHAPES = {EMBEDDING: (VOCABULARY, 2), "model.norm.weight": (2,)}


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
    for number, (name, shape) in enumerate(SHAPES.items(), start=1):
        places[name] = f"model-{number:05}-of-00002.safetensors"
        (folder / places[name]).write_bytes(safetensors_bytes({name: shape}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
