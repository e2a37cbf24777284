"""Models that cannot be trained, told by their config.json."""

import json

import pytest
from model_files import CONFIG, make_model_folder

from shared.errors import ModelFolderError
from shared.model_config import ARCHITECTURES
from shared.model_folder import check_weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_can_be_trained_passes(tmp_path, architecture):
    folder = make_model_folder(tmp_path / "m")
    unused_window = {"sliding_window": 4096, "use_sliding_window": False}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"architectures": [architecture]} | unused_window))
    check_weights(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["BertForMaskedLM"]}, r"BertForMaskedLM, which is not supported.*Qwen2ForCausalLM"),
        ({"architectures": None}, r"architecture none, which is not supported"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, r"auto_map.*is never run"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized"),
        ({"sliding_window": 4096}, r"sliding window"),
        ({"vocab_size": "many"}, r"vocab_size"),
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
