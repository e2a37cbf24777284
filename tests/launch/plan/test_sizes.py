"""Parameters from a config.json alone are those of the model that `transformers` makes of it."""

import json

import pytest
from model_files import CONFIG, make_model_folder

from launch.bench.models import SHAPES
from launch.plan.sizes import model_sizes
from shared.errors import ConfigError, ModelFolderError

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
        ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),
        ("Qwen3ForCausalLM", {"tie_word_embeddings": True, "head_dim": 16}),
        ("Qwen3ForCausalLM", {"attention_bias": True}),
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
        ("MistralForCausalLM", {"sliding_window": None, "num_key_value_heads": 4}),
    ],
)
def test_parameters_are_those_of_the_model_itself(tmp_path, architecture, changes):
    import torch
    import transformers

    config = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(**SIZES | changes)
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = getattr(transformers, architecture)(config)
    found = model_sizes(str(tmp_path))
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.largest_parameter == max(parameter.numel() for parameter in model.parameters())
    assert found.layer == sum(parameter.numel() for parameter in model.model.layers[0].parameters())


def test_shapes_have_the_published_numbers_of_parameters():
    millions = {name: model_sizes(name, 151_936).parameters / 1e6 for name in SHAPES if name.startswith("qwen")}
    assert millions == pytest.approx(
        {"qwen2.5-0.5b": 494.0, "qwen2.5-1.5b": 1543.7, "qwen2.5-3b": 3085.9, "qwen2.5-7b": 7615.6}, rel=1e-3
    )


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neither a folder.*qwen2\.5-3b"):
        model_sizes(str(tmp_path))
    make_model_folder(tmp_path)
    without = {key: value for key, value in CONFIG.items() if key != "num_attention_heads"}
    (tmp_path / "config.json").write_text(json.dumps(without))
    with pytest.raises(ModelFolderError, match=r"missing required field `num_attention_heads`"):
        model_sizes(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelFolderError, match="GPT2LMHeadModel"):
        model_sizes(str(tmp_path))
