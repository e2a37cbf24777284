"""Models that cannot be trained, told by their config.json."""

import json
import math

import pytest
from model_files import CONFIG, make_model_folder, safetensors_bytes

from shared.errors import ModelFolderError
from shared.model_config import ARCHITECTURES
from shared.model_folder import check_weights
from shared.model_sizes import folder_sizes

MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_can_be_trained_passes(tmp_path, architecture):
    folder = make_model_folder(tmp_path / "m")
    unused = {"sliding_window": None if architecture == "MistralForCausalLM" else 4096, "use_sliding_window": False}
    kind = {"architectures": [architecture], "model_type": ARCHITECTURES[architecture]}
    (folder / "config.json").write_text(json.dumps(CONFIG | kind | unused))
    sizes = folder_sizes(folder)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(sizes.tensors))
    check_weights(folder)
    assert sum(map(math.prod, sizes.tensors.values())) == sizes.parameters


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["BertForMaskedLM"]}, r"BertForMaskedLM, which is not supported.*Qwen2ForCausalLM"),
        ({"architectures": None}, r"architecture none, which is not supported"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, r"auto_map.*is never run"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized"),
        ({"use_sliding_window": True}, r"sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"sliding window"),
        (MISTRAL | {"sliding_window": 4096, "use_sliding_window": False}, r"sliding window"),
        (MISTRAL, r"sliding window"),  # by default
        ({"vocab_size": "many"}, r"Expected `int`, got `str` - at `\$\.vocab_size`"),
        ({"vocab_size": None}, r"Expected `int`, got `null` - at `\$\.vocab_size`"),
        ({"eos_token_id": [[2, 0]]}, r"Expected `int`, got `array` - at `\$\.eos_token_id"),
        ({"pad_token_id": "<pad>"}, r"pad_token_id"),
        ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings"),
        ({"rope_parameters": "default"}, r"rope_parameters"),
        ({"rms_norm_eps": None}, r"rms_norm_eps"),
        ({"hidden_act": "gelu"}, r"hidden_act"),
        ({"dtype": "int4"}, r"dtype"),
        ({"model_type": "llama"}, r"model_type='llama', which does not go with the rest"),
        ({"architectures": ["Qwen2ForCausalLM", "LlamaForCausalLM"]}, r"which is not supported"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, r"num_key_value_heads=2"),
        ({"head_dim": 3}, r"heads of 3 numbers"),
        ({"layer_types": ["full_attention"]}, r"layer_types"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(tmp_path, change, said):
    folder = make_model_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModelFolderError, match=said):
        check_weights(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 10_000])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, content):
    folder = make_model_folder(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"config\.json.*download it again"):
        check_weights(folder)
