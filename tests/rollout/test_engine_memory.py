from rollout.engine_vllm import memory_arguments
from shared.config import RolloutConfig


def test_an_engines_share_and_cache_reach_vllm_in_its_own_words():
    from vllm.engine.arg_utils import AsyncEngineArgs

    arguments = memory_arguments(RolloutConfig(gpu_memory_share=0.25, gpu_cache_gib=1.5))
    assert arguments == {"gpu_memory_utilization": 0.25, "kv_cache_memory_bytes": 3 * 2**29}
    assert set(arguments) <= set(AsyncEngineArgs.__dataclass_fields__)
    assert memory_arguments(RolloutConfig()) == {}
