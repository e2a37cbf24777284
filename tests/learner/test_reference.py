"""The reference model of the KL term, within the policy."""

import shutil

import pytest
import torch
from plain_policy import CONFIG, PlainPyTorch, make_policy, weights_of
from random_batches import random_batch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import learner.reference
from shared.errors import ModelFolderError

pytestmark = pytest.mark.usefixtures("single_process")


def config_of(estimator="k2", coefficient=0.5, **changes):
    return CONFIG.model_copy(update={"kl_coefficient": coefficient, "kl_estimator": estimator, **changes})


def changed_copy(model_folder, folder, change):
    """A copy of the model whose tensors went through `change(name, tensor)`."""
    shutil.copytree(model_folder, folder)
    tensors = {name: change(name, w) for name, w in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def noisy_copy(model_folder, folder):
    g = torch.Generator().manual_seed(1)
    return changed_copy(model_folder, folder, lambda _, w: w + 0.05 * torch.randn(w.shape, generator=g))


@pytest.fixture
def loaded(monkeypatch):
    """The folders that reference models are loaded from."""
    folders, load_model = [], learner.reference.load_model

    def recording(folder, dtype):
        folders.append((folder, dtype))
        return load_model(folder, dtype)

    monkeypatch.setattr(learner.reference, "load_model", recording)
    return folders


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_none_is_loaded_without_a_kl_term(model_folder, loaded, estimator):
    policy = make_policy(model_folder, config_of(estimator, 0.0, reference_model=model_folder))
    assert policy._reference is None
    assert not policy.penalises_reward
    assert policy.train(random_batch()).reference_kl is None
    assert loaded == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_by_default_it_is_the_model_that_training_starts_from_in_its_dtype(model_folder, loaded, dtype):
    policy = make_policy(model_folder, config_of(), dtype)
    assert loaded == [(model_folder, dtype)]
    assert policy.train(random_batch()).reference_kl == 0


@pytest.mark.parametrize(("estimator", "penalises"), [("k1", True), ("k2", False), ("k3", False)])
def test_k1_alone_penalises_the_reward(model_folder, estimator, penalises):
    assert make_policy(model_folder, config_of(estimator)).penalises_reward is penalises


def test_it_stays_what_it_is_while_the_policy_moves(model_folder):
    policy = make_policy(model_folder, config_of("k3", 0.01))
    reference = policy._reference._model
    before = [p.clone() for p in reference.parameters()]
    divergence = [policy.train(random_batch()).reference_kl for _ in range(3)]
    assert divergence[0] == pytest.approx(0, abs=1e-9)
    assert 1e-9 < divergence[1] < divergence[2]
    assert not reference.training
    for parameter, old in zip(reference.parameters(), before, strict=True):
        assert not parameter.requires_grad
        assert torch.equal(parameter, old)
    assert not {id(p) for p in reference.parameters()} & {id(p) for p in policy._engine.module.parameters()}


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_kl_term_alone_moves_the_policy_towards_it(model_folder, tmp_path, estimator):
    reference = noisy_copy(model_folder, tmp_path / "reference")
    changes = {"reference_model": reference, "entropy_coefficient": 0.0}
    policy = make_policy(model_folder, config_of(estimator, 1.0, **changes))
    batch = random_batch(rows=30)
    batch.advantages.zero_()
    divergence = [policy.train(batch).reference_kl for _ in range(6)]
    assert divergence[-1] < 0.5 * divergence[0]


@pytest.mark.parametrize("max_tokens", [1000, 30, 10])
def test_the_reward_penalty_is_each_row_s_summed_log_ratio(model_folder, tmp_path, max_tokens):
    reference = noisy_copy(model_folder, tmp_path / "reference")
    config = config_of("k1", 0.25, reference_model=reference, max_tokens=max_tokens)
    policy = make_policy(model_folder, config)
    before, batch = weights_of(policy), random_batch(rows=14, copies=2)
    penalty = policy.reference_penalty(batch)
    assert penalty.dtype == torch.float32
    expected = PlainPyTorch(model_folder, config).reference_penalty(batch)
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(penalty, expected, rtol=1e-4, atol=1e-5)
    for name, weight in weights_of(policy).items():
        assert torch.equal(weight, before[name]), name


def test_another_number_of_token_ids_is_refused(model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.resize_token_embeddings(64)
    model.save_pretrained(tmp_path / "reference")
    with pytest.raises(ModelFolderError, match="64 token ids, the policy 50: point"):
        make_policy(model_folder, config_of(reference_model=tmp_path / "reference"))


def with_tokenizer(model_folder, folder, words):
    shutil.copytree(model_folder, folder)
    Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="a")).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("words", "accepted"), [("abc", True), ("acb", False), ("ab", False), ("abcd", False)])
def test_tokens_with_other_ids_are_refused(model_folder, tmp_path, words, accepted):
    policy = with_tokenizer(model_folder, tmp_path / "policy", "abc")
    config = config_of(reference_model=with_tokenizer(model_folder, tmp_path / "reference", words))
    if accepted:
        make_policy(policy, config)
    else:
        with pytest.raises(ModelFolderError, match="another vocabulary than the policy"):
            make_policy(policy, config)


def test_an_unreadable_tokenizer_is_named(model_folder, tmp_path):
    policy = with_tokenizer(model_folder, tmp_path / "policy", "abc")
    reference = with_tokenizer(model_folder, tmp_path / "reference", "abc")
    (reference / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFolderError, match="cannot read the tokenizer"):
        make_policy(policy, config_of(reference_model=reference))


def test_a_missing_folder_is_named(model_folder, tmp_path):
    with pytest.raises(ModelFolderError, match="does not exist"):
        make_policy(model_folder, config_of(reference_model=tmp_path / "none"))
