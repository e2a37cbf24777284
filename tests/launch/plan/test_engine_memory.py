"""An attention cache's blocks are as large as vLLM makes them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.plan.engine_memory import block_bytes, blocks_of
from launch.plan.sizes import model_sizes


@pytest.mark.parametrize("shape", ["tiny", "qwen2.5-0.5b", "qwen2.5-3b", "qwen2.5-7b"])
@pytest.mark.parametrize(("dtype", "item"), [("bfloat16", 2), ("float32", 4)])
def test_a_block_is_as_large_as_in_vllms_own_specification(shape, dtype, item):
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    model = model_sizes(shape)
    specification = FullAttentionSpec(
        block_size=32, num_kv_heads=model.kv_heads, head_size=model.head_width, dtype=getattr(torch, dtype)
    )
    planned = block_bytes(model, item=item, block_size=32)
    assert planned == model.layers * specification.page_size_bytes
    assert blocks_of(1536, 32) == 48
    assert blocks_of(1537, 32) == 49


@pytest.mark.integration
def test_a_running_engines_cache_has_blocks_of_that_size(model_folder, tmp_path):
    answer = tmp_path / "answer.json"
    program = Path(__file__).with_name("cache_blocks.py")
    subprocess.run([sys.executable, str(program), str(model_folder), str(answer)], timeout=500, check=True)
    found = json.loads(answer.read_text())
    model = model_sizes(str(model_folder))
    block = block_bytes(model, item=2, block_size=32)
    assert found["layers"] == [block // model.layers] * model.layers
    assert found["blocks"] == 2**30 // block
