import pytest

from rollout.engine_vllm import execution_arguments, memory_arguments
from shared.config import RolloutConfig


def test_an_engines_share_or_cache_reaches_vllm_in_its_own_words():
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = set(AsyncEngineArgs.__dataclass_fields__)
    assert memory_arguments(RolloutConfig(gpu_memory_share=0.25)) == {"gpu_memory_utilization": 0.25}
    assert memory_arguments(RolloutConfig()) == {}
    assert set(memory_arguments(RolloutConfig(gpu_cache_gib=1.5))) <= known


@pytest.mark.parametrize("share", [None, 0.25])
def test_of_a_cache_that_is_given_the_share_sizes_nothing_and_refuses_nothing(share):
    arguments = memory_arguments(RolloutConfig(gpu_memory_share=share, gpu_cache_gib=1.5))
    assert arguments["kv_cache_memory_bytes"] == 3 * 2**29
    assert 0 < arguments["gpu_memory_utilization"] < 0.05


@pytest.mark.parametrize(("most", "count"), [(1, 1), (3, 3), (48, 9), (100, 16), (256, 35), (300, 38), (512, 51)])
def test_graphs_are_captured_for_as_many_sequences_as_decode_at_once(monkeypatch, most, count):
    monkeypatch.setattr("rollout.engine_vllm.on_cpu", lambda: False)
    compilation = execution_arguments(RolloutConfig(max_sequences=most))["compilation_config"]
    sizes = compilation["cudagraph_capture_sizes"]
    assert sizes[-1] == most
    assert len(sizes) == len(set(sizes)) == count
    assert compilation["mode"] == 0
    assert execution_arguments(RolloutConfig(cuda_graphs=False)) == {"enforce_eager": True}


def test_there_are_no_graphs_on_the_cpu(monkeypatch):
    monkeypatch.setattr("rollout.engine_vllm.on_cpu", lambda: True)
    assert execution_arguments(RolloutConfig(cuda_graphs=True)) == {"enforce_eager": True}
