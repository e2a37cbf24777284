"""What the engine adapter asks of vLLM, without an engine."""

import json

import pytest
from model_files import CONFIG, engine_files, make_model_folder, make_sharded_folder, safetensors_bytes

from rollout.engine_vllm import _CPU_HEAD_WIDTHS, check_head_width, sampling_params
from shared.config import SamplingConfig
from shared.errors import EngineError, ModelFolderError
from shared.limits import LOWEST_TEMPERATURE


@pytest.mark.parametrize("temperature", [0, LOWEST_TEMPERATURE, 0.7, 2.0])
def test_what_is_asked_for_is_what_is_sampled_with(temperature):
    n = 3 if temperature else 1
    params = sampling_params(n=n, temperature=temperature, max_tokens=5, seed=7, stop_token_ids=[5, 2], logprobs=0)
    assert (params.n, params.temperature, params.max_tokens, params.seed) == (n, temperature, 5, 7)


def test_a_value_that_vllm_would_replace_is_an_error():
    with pytest.raises(EngineError, match=r"would sample with temperature=0\.01, and was asked for temperature=0\.005"):
        sampling_params(temperature=0.005)
    with pytest.raises(EngineError, match="refuses these sampling parameters"):
        sampling_params(temperature=-1)


def test_no_temperature_that_may_be_configured_is_replaced():
    """The learner's log-probabilities are at the configured one."""
    (least,) = (limit.ge for limit in SamplingConfig.model_fields["temperature"].metadata if hasattr(limit, "ge"))
    assert sampling_params(temperature=least).temperature == least


@pytest.mark.parametrize("make", [make_model_folder, make_sharded_folder])
def test_the_weight_files_that_are_checked_are_those_that_it_loads(make, tmp_path):
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    folder = make(tmp_path / "model")
    for name in ("adapter_model.safetensors", "._model.safetensors", "model.bin"):
        (folder / name).write_bytes(safetensors_bytes({"lora": (1,)}))
    loader = DefaultModelLoader(LoadConfig(load_format="safetensors"))
    _, files, *_ = loader._prepare_weights(str(folder), None, None, True, None)
    assert sorted(files) == [str(path) for path in engine_files(folder)]


def test_heads_that_there_are_kernels_for_are_vllm_s():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert CPUAttentionBackend.get_supported_head_sizes() == [*_CPU_HEAD_WIDTHS]


@pytest.mark.parametrize(
    ("width", "devices"), [(8, {"cuda"}), (64, {"cpu", "cuda"}), (72, {"cuda"}), (512, {"cpu"}), (12, {})]
)
def test_a_width_of_heads_that_the_engine_does_not_compute_is_refused(tmp_path, width, devices):
    folder = make_model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"head_dim": width}))
    for device in ("cpu", "cuda"):
        if device in devices:
            check_head_width(folder, device)
        else:
            with pytest.raises(ModelFolderError, match=rf"have {width} numbers, and the engine computes none such"):
                check_head_width(folder, device)
