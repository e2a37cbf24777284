"""A process of its own, since it sets the environment: vLLM starts an engine and tells how its cache is cut."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(model: str, answer: str) -> None:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_PLUGINS="",
    )
    from vllm import LLM

    llm = LLM(
        model,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enforce_eager=True,
        block_size=32,
        max_model_len=64,
        distributed_executor_backend="uni",
    )
    layers = llm.llm_engine.engine_core.engine_core.model_executor.get_kv_cache_specs()[0]
    blocks = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
    sizes = [specification.page_size_bytes for specification in layers.values()]
    Path(answer).write_text(json.dumps({"blocks": blocks, "layers": sizes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
