"""An attention cache's blocks are as large as vLLM makes them."""

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
def test_a_running_engines_cache_has_blocks_of_that_size(model_folder):
    import os

    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind"
    )
    from vllm import LLM

    llm = LLM(
        str(model_folder),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enforce_eager=True,
        block_size=32,
        max_model_len=64,
        distributed_executor_backend="uni",
    )
    specifications = llm.llm_engine.engine_core.engine_core.model_executor.get_kv_cache_specs()[0]
    sizes = {spec.page_size_bytes for spec in specifications.values()}
    model = model_sizes(str(model_folder))
    assert len(specifications) == model.layers
    assert sizes == {block_bytes(model, item=2, block_size=32) // model.layers}
    blocks = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
    assert blocks == 2**30 // block_bytes(model, item=2, block_size=32)
