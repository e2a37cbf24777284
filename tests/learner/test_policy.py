import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_policy import (
    CAPPED,
    CONFIG,
    ICEPOP,
    SEQUENCE_MASK,
    SEVERAL_STEPS,
    UNCORRECTED,
    PlainPyTorch,
    assert_same_update,
    flat,
    gradients_of,
    make_policy,
    weights_of,
)
from random_batches import random_batch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learner.train_metrics import Mismatch, TrainMetrics
from shared.config import TrustRegionConfig
from shared.errors import ModelFolderError

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("max_tokens", [1000, 40, 15], ids=["one micro-batch", "three", "many"])
def test_update_equals_plain_pytorch(model_folder, zero_stage, max_tokens):
    batch = random_batch(rows=14, copies=2)
    config = CONFIG.model_copy(update={"zero_stage": zero_stage, "max_tokens": max_tokens})
    policy, plain = make_policy(model_folder, config), PlainPyTorch(model_folder)
    metrics, norm = policy.train(batch), plain.train(batch)
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert_same_update(gradients_of(policy), weights_of(policy), plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"averaging": "sequence"},
        {"gradient_clip": 0.01},
        {"zero_stage": 0, "gradient_clip": 0.01},
        {"zero_stage": 3, "gradient_clip": 0.01},
        {"trust_region": CAPPED},
        {"trust_region": ICEPOP},
        {"trust_region": SEQUENCE_MASK},
        {"trust_region": UNCORRECTED},
        {"kl_coefficient": 0.3, "kl_estimator": "k1"},
        {"kl_coefficient": 0.3, "kl_estimator": "k2"},
        {"kl_coefficient": 0.3, "kl_estimator": "k3"},
        {"kl_coefficient": 0.3, "kl_estimator": "k3", "trust_region": SEQUENCE_MASK, "averaging": "sequence"},
    ],
    ids=str,
)
def test_every_setting_of_the_loss_equals_plain_pytorch(model_folder, reference_folder, changes):
    config = CONFIG.model_copy(update={"max_tokens": 80, "reference_model": reference_folder, **changes})
    policy, plain = make_policy(model_folder, config), PlainPyTorch(model_folder, config)
    batch = random_batch(rows=48, copies=2, responses=(4, 2), template=18)
    metrics, norm = policy.train(batch), plain.train(batch)
    prompt_tokens = sum(len(prompt) for prompt in {bytes(p.numpy()): p for p, _ in batch.rows()}.values())
    assert metrics.forward_tokens < prompt_tokens, "prompts shared no beginning"
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert_same_update(gradients_of(policy), weights_of(policy), plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"trust_region": ICEPOP, "kl_coefficient": 0.3, "kl_estimator": "k2"},
        {"trust_region": SEQUENCE_MASK, "kl_coefficient": 0.3, "kl_estimator": "k3", "averaging": "sequence"},
        {"trust_region": UNCORRECTED, "kl_coefficient": 0.3, "kl_estimator": "k1"},
    ],
    ids=str,
)
def test_several_optimizer_steps_keep_the_old_log_probabilities_of_the_batch_s_start(
    model_folder, reference_folder, changes
):
    config = CONFIG.model_copy(update=SEVERAL_STEPS | {"reference_model": reference_folder} | changes)
    policy, plain = make_policy(model_folder, config), PlainPyTorch(model_folder, config)
    batch = random_batch(rows=15)
    metrics, norm = policy.train(batch), plain.train(batch)
    assert metrics.optimizer_steps == 3
    assert abs(metrics.ratio_mean - 1) > 1e-3
    assert metrics.clip_fraction > 0
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-3)
    for name, gradient in gradients_of(policy).items():
        torch.testing.assert_close(gradient, plain.gradients[name], rtol=1e-3, atol=1e-3)


def test_merged_rows_give_the_gradient_of_separate_rows(model_folder):
    batch = random_batch(rows=24, copies=6)
    policy, plain = make_policy(model_folder), PlainPyTorch(model_folder)
    metrics = policy.train(batch)
    plain.train(batch)
    assert metrics.unique_rows == pytest.approx(4 / 24)
    assert metrics.forward_tokens == (batch.prompt_lengths + batch.response_lengths - 1).sum() / 6
    assert_same_update(gradients_of(policy), weights_of(policy), plain)


@pytest.mark.parametrize("averaging", ["token", "sequence"])
@pytest.mark.parametrize(("dtype", "zero_stage"), [("float32", 1), ("bfloat16", 1), ("bfloat16", 2), ("bfloat16", 3)])
def test_a_positive_advantage_raises_the_probability_of_the_stored_completion(
    model_folder, dtype, zero_stage, averaging
):
    batch = random_batch(rows=2, lengths=(6,))
    batch = replace(batch, advantages=torch.tensor([1.0, -1.0]), row_weights=torch.ones(2))
    config = CONFIG.model_copy(update={"zero_stage": zero_stage, "entropy_coefficient": 0.0, "averaging": averaging})
    policy = make_policy(model_folder, config, dtype)

    def response_logprobs() -> list[float]:
        return [float(policy.score(torch.cat(row).tolist())[len(row[0]) - 1 :].sum()) for row in batch.rows()]

    good_before, bad_before = response_logprobs()
    for _ in range(5):
        policy.train(batch)
    good_after, bad_after = response_logprobs()
    assert good_after > good_before + 0.05
    assert bad_after < bad_before - 0.05


@pytest.mark.parametrize(("dtype", "zero_stage"), [("float32", 0), ("float32", 1), ("bfloat16", 2), ("bfloat16", 3)])
def test_lr_zero_leaves_the_weights_bit_identical(model_folder, dtype, zero_stage):
    policy = make_policy(model_folder, CONFIG.model_copy(update={"lr": 0.0, "zero_stage": zero_stage}), dtype)
    before = weights_of(policy)
    for seed in range(3):
        assert policy.train(random_batch(seed=seed)).gradient_norm > 0
    for name, weight in weights_of(policy).items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bfloat16_adds_up_gradients_and_steps_in_float32(model_folder, zero_stage):
    """Many micro-batches lose no more than one, and steps too small for bfloat16 still add up."""
    config = CONFIG.model_copy(update={"zero_stage": zero_stage, "lr": 1e-5})
    batch = random_batch(rows=60)
    whole = make_policy(model_folder, config.model_copy(update={"max_tokens": 10_000}), "bfloat16")
    split = make_policy(model_folder, config.model_copy(update={"max_tokens": 12}), "bfloat16")
    plain = PlainPyTorch(model_folder)
    plain.train(batch)
    errors = []
    for policy in (whole, split):
        policy.train(batch)
        found, expected = gradients_of(policy), plain.gradients
        assert {g.dtype for g in found.values()} == {torch.float32}
        errors.append(math.sqrt(sum(float((found[n] - expected[n]).square().sum()) for n in expected)))
    norm = math.sqrt(sum(float(g.square().sum()) for g in plain.gradients.values()))
    assert errors[1] <= 1.5 * errors[0] <= 0.1 * norm

    before = weights_of(whole)
    for _ in range(60):
        whole.train(batch)
    changed = torch.cat([(weight != before[name]).flatten() for name, weight in weights_of(whole).items()])
    assert changed.float().mean() > 0.3


def test_warm_up_is_linear_and_then_constant(model_folder):
    policy = make_policy(model_folder, CONFIG.model_copy(update={"warmup_steps": 3}))
    rates = [policy.train(random_batch(rows=2)).lr for _ in range(5)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("sampled_by", ["this version", "another"])
def test_with_one_step_the_ratio_is_1_and_what_is_left_of_the_sampler_is_the_mismatch(model_folder, sampled_by):
    """On-policy: tokens of this version with its own log-probabilities, so that nothing is left."""
    batch, plain = random_batch(rows=20), PlainPyTorch(model_folder)
    with torch.no_grad():
        own = torch.cat([plain.logprobs(*row)[0] for row in batch.rows()])
    gap = 0.25 if sampled_by == "another" else 0.0
    staleness = torch.full_like(batch.staleness, int(gap > 0))
    metrics = make_policy(model_folder).train(replace(batch, behaviour_logprobs=own - gap, staleness=staleness))
    assert (metrics.ratio_mean, metrics.clip_fraction) == (1.0, 0.0)  # exactly
    assert metrics.mismatch_max == pytest.approx(gap, abs=1e-5)
    assert metrics.importance_weight_mean == pytest.approx(math.exp(gap), abs=1e-5)
    assert metrics.mismatch_by_staleness.keys() == {int(gap > 0)}


def test_metrics_describe_the_batch(model_folder, reference_folder):
    batch = random_batch(rows=10, copies=2)
    changes = {"max_tokens": 20, "kl_coefficient": 0.1, "reference_model": reference_folder}
    config = CONFIG.model_copy(update=changes)
    plain = PlainPyTorch(model_folder, config)
    with torch.no_grad():
        found = [plain.logprobs(*row) for row in batch.rows()]
    logprobs, entropy = (torch.cat(column) for column in zip(*found, strict=True))
    mismatch = logprobs - batch.behaviour_logprobs
    weight = mismatch.exp().clamp(max=2.0)
    d = torch.cat(plain.log_ratios(batch))
    metrics = make_policy(model_folder, config).train(batch)
    expected = TrainMetrics(
        loss=metrics.loss,
        gradient_norm=plain.train(batch),
        entropy=entropy.mean(),
        entropy_coefficient=CONFIG.entropy_coefficient,
        ratio_mean=1.0,
        clip_fraction=0.0,
        importance_weight_mean=weight.mean(),
        importance_truncated_share=(mismatch.exp() > 2).float().mean(),
        importance_masked_share=0.0,
        effective_sample_size=weight.sum() ** 2 / (len(weight) * (weight**2).sum()),
        mismatch_mean=mismatch.abs().mean(),
        mismatch_max=mismatch.abs().max(),
        mismatch_kl=-mismatch.mean(),
        mismatch_by_staleness={
            age: Mismatch(tokens=len(own), mean=own.abs().mean(), max=own.abs().max(), kl=-own.mean())
            for age in range(3)
            if len(own := mismatch[batch.staleness == age])
        },
        reference_kl=(torch.exp(-d) - 1 + d).mean(),
        tokens=len(logprobs),
        forward_tokens=int((batch.prompt_lengths + batch.response_lengths - 1).sum()) // 2,
        unique_rows=0.5,
        lr=1e-3,
        largest_advantage=batch.advantages.abs().max(),
        skipped_steps=0,
        not_finite_rows=(),
        optimizer_steps=1,
    )
    assert len(metrics.mismatch_by_staleness) == 3
    found, wanted = flat(metrics), flat(expected)
    assert found.pop("not_finite_rows") == wanted.pop("not_finite_rows") == ()
    assert found == pytest.approx({name: float(value) for name, value in wanted.items()}, rel=1e-4, abs=1e-6)
    assert 0 < metrics.importance_truncated_share < 1
    assert metrics.reference_kl > 0.01


@pytest.mark.parametrize("region", [ICEPOP, SEQUENCE_MASK], ids=lambda region: region.correction)
def test_metrics_say_what_the_band_took_out(model_folder, region):
    batch = random_batch(rows=14, copies=2)
    plain = PlainPyTorch(model_folder, CONFIG.model_copy(update={"trust_region": region}))
    behaviour = batch.behaviour_logprobs.split(batch.response_lengths.tolist())
    with torch.no_grad():
        rows = zip(batch.rows(), behaviour, strict=True)
        weight = torch.cat([plain.importance_weight(plain.logprobs(*row)[0] - b) for row, b in rows])
    metrics = make_policy(model_folder, plain.config).train(batch)
    assert 0 < metrics.importance_masked_share < 1
    assert metrics.importance_masked_share == pytest.approx((weight == 0).float().mean())
    assert metrics.importance_weight_mean == pytest.approx(weight.mean())
    assert metrics.tokens == len(weight)


def test_a_batch_that_the_band_takes_out_whole_has_no_effective_sample(model_folder):
    nothing = TrustRegionConfig(correction="icepop", band_low=1.0, band_high=1.0)
    config = CONFIG.model_copy(update={"trust_region": nothing, "entropy_coefficient": 0.0, "weight_decay": 0.0})
    policy = make_policy(model_folder, config)
    before = weights_of(policy)
    metrics = policy.train(random_batch())
    assert (metrics.importance_masked_share, metrics.effective_sample_size) == (1, 0)
    assert metrics.loss == metrics.gradient_norm == 0
    for name, weight in weights_of(policy).items():
        assert torch.equal(weight, before[name]), name


def test_score_is_the_raw_distribution_of_the_text(model_folder):
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    policy = make_policy(model_folder)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model_folder)(torch.tensor([ids])).logits[0]
    expected = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    found = policy.score(ids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "zero_stage"), [("float32", 1), ("bfloat16", 1), ("float32", 3), ("bfloat16", 3)])
def test_saved_folder_holds_the_trained_weights_in_the_model_dtype(model_folder, tmp_path, dtype, zero_stage):
    policy = make_policy(model_folder, CONFIG.model_copy(update={"zero_stage": zero_stage}), dtype)
    policy.train(random_batch())
    policy.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {w.dtype for w in saved.values()} == {getattr(torch, dtype)}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    for (name, weight), parameter in zip(weights_of(policy).items(), loaded.parameters(), strict=True):
        assert torch.equal(weight, parameter), name
    assert make_policy(tmp_path, dtype=dtype).score([1, 2, 3]).tolist() == policy.score([1, 2, 3]).tolist()


def damage_nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def damage_by_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage_by_omission(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing, "does not exist"),
        (damage_config, "cannot read"),
        (damage_weights, "ends within its header"),
        (damage_by_pickle, "no \\*.safetensors"),
        (damage_by_omission, "model.norm.weight"),
    ],
)
def test_a_broken_model_folder_is_named(model_folder, tmp_path, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    damage(folder)
    with pytest.raises(ModelFolderError, match=message):
        make_policy(folder)


def test_every_micro_batch_of_an_update_is_a_sign_of_life(model_folder):
    policy = make_policy(model_folder, CONFIG.model_copy(update={"max_tokens": 15}))
    beats: list[int] = []
    policy._beat = lambda: beats.append(1)
    batch = random_batch(rows=14)
    micro_batches = policy._own_micro_batches(policy._plan(batch))
    policy.train(batch)
    assert len(beats) == len(micro_batches) > 3


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "zero_stage"),
    [("float32", 0), *((dtype, stage) for dtype in ("float32", "bfloat16") for stage in (1, 2, 3))],
)
def test_a_step_whose_gradient_is_not_finite_is_skipped_and_its_rows_are_named(model_folder, dtype, zero_stage, steps):
    changes = {"zero_stage": zero_stage, "optimizer_steps_per_batch": steps, "max_tokens": 30, "warmup_steps": 3}
    policy, other = (make_policy(model_folder, CONFIG.model_copy(update=changes), dtype) for _ in range(2))
    sound = random_batch(rows=14, copies=2)
    broken = replace(sound, advantages=sound.advantages.clone())
    broken.advantages[5] = torch.inf
    for each in (policy, other):
        assert each.train(sound).skipped_steps == 0
    before = weights_of(policy)
    metrics = policy.train(broken)
    assert metrics.skipped_steps == 1
    assert metrics.not_finite_rows == (5,)
    assert math.isfinite(metrics.gradient_norm) == (steps == 2)
    changed = [not torch.equal(weight, before[name]) for name, weight in weights_of(policy).items()]
    assert any(changed) == (steps == 2)
    if steps == 1:  # nothing of it is left
        policy._last_entropy = other._last_entropy
        assert policy.train(sound) == other.train(sound)
        for name, weight in weights_of(policy).items():
            assert torch.equal(weight, weights_of(other)[name]), name


def test_a_log_probability_that_is_not_finite_names_its_row(model_folder):
    policy, batch = make_policy(model_folder), random_batch(rows=14)
    assert policy.train(batch).not_finite_rows == ()
    batch.behaviour_logprobs[batch.response_lengths[:3].sum()] = torch.nan
    assert policy.train(batch).not_finite_rows == (3,)
