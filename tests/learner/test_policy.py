import math
import multiprocessing
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_policy import (
    CONFIG,
    Case,
    PlainPyTorch,
    assert_same_update,
    gradients_of,
    make_policy,
    train_as_rank,
    weights_of,
)
from random_batches import free_port, random_batch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learner.train_metrics import TrainMetrics
from shared.config import TrustRegionConfig
from shared.errors import ModelFolderError

pytestmark = pytest.mark.usefixtures("single_process")

CAPPED = TrustRegionConfig(importance_cap=1.1)
ICEPOP = TrustRegionConfig(correction="icepop", band_low=0.6, band_high=1.6)
SEQUENCE_MASK = TrustRegionConfig(correction="sequence_mask", band_low=0.6, band_high=1.6)
UNCORRECTED = TrustRegionConfig(correction="none")


@pytest.fixture(scope="module")
def reference_folder(model_folder, tmp_path_factory) -> Path:
    """A model of the policy's shape with other weights."""
    folder = tmp_path_factory.mktemp("reference") / "model"
    shutil.copytree(model_folder, folder)
    g = torch.Generator().manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    moved = {name: w + 0.05 * torch.randn(w.shape, generator=g) for name, w in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
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
    config = CONFIG.model_copy(update={"max_tokens": 40, "reference_model": reference_folder, **changes})
    policy, plain = make_policy(model_folder, config), PlainPyTorch(model_folder, config)
    batch = random_batch(rows=14, copies=2)
    metrics, norm = policy.train(batch), plain.train(batch)
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert_same_update(gradients_of(policy), weights_of(policy), plain)


SEVERAL_STEPS = {
    "optimizer_steps_per_batch": 3,
    "max_tokens": 40,
    "betas": (0.0, 0.0),
    "lr": 0.02,
    "gradient_clip": 0.5,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2},
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
    assert metrics.forward_tokens == (batch.prompt_lengths + batch.response_lengths).sum() / 6
    assert_same_update(gradients_of(policy), weights_of(policy), plain)


@pytest.mark.parametrize("averaging", ["token", "sequence"])
@pytest.mark.parametrize(("dtype", "zero_stage"), [("float32", 1), ("bfloat16", 1), ("bfloat16", 2)])
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


@pytest.mark.parametrize(("dtype", "zero_stage"), [("float32", 0), ("float32", 1), ("bfloat16", 1), ("bfloat16", 2)])
def test_lr_zero_leaves_the_weights_bit_identical(model_folder, dtype, zero_stage):
    policy = make_policy(model_folder, CONFIG.model_copy(update={"lr": 0.0, "zero_stage": zero_stage}), dtype)
    before = weights_of(policy)
    for seed in range(3):
        assert policy.train(random_batch(seed=seed)).gradient_norm > 0
    for name, weight in weights_of(policy).items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("zero_stage", [1, 2])
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
        reference_kl=(torch.exp(-d) - 1 + d).mean(),
        tokens=len(logprobs),
        forward_tokens=int((batch.prompt_lengths + batch.response_lengths).sum()) // 2,
        unique_rows=0.5,
        lr=1e-3,
        largest_advantage=batch.advantages.abs().max(),
        optimizer_steps=1,
    )
    for name, value in asdict(expected).items():
        assert getattr(metrics, name) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_folder_holds_the_trained_weights_in_the_model_dtype(model_folder, tmp_path, dtype):
    policy = make_policy(model_folder, dtype=dtype)
    policy.train(random_batch())
    policy.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {w.dtype for w in saved.values()} == {getattr(torch, dtype)}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    for (name, weight), parameter in zip(weights_of(policy).items(), loaded.parameters(), strict=True):
        assert torch.equal(weight, parameter), name
    assert make_policy(tmp_path, dtype=dtype).score([1, 2, 3]).tolist() == policy.score([1, 2, 3]).tolist()


def test_parameters_carry_the_names_of_the_model_folder(model_folder):
    names = [name for name, _ in make_policy(model_folder).module.named_parameters()]
    assert sorted(names) == sorted(load_file(model_folder / "model.safetensors"))


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
        (damage_config, "cannot load"),
        (damage_weights, "cannot load"),
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


# The last but three has one row: the second rank has nothing to do but keep up.
TWO_RANK_CASES = [
    Case(0, 30),
    Case(1, 1000),
    Case(1, 30),
    Case(2, 30),
    Case(1, 1000, rows=1),
    Case(1, 30, changes={"kl_coefficient": 0.3, "kl_estimator": "k3", "trust_region": SEQUENCE_MASK}),
    Case(1, 30, changes={"kl_coefficient": 0.3, "kl_estimator": "k1"}),
    Case(2, 40, changes=SEVERAL_STEPS | {"kl_coefficient": 0.3, "kl_estimator": "k2", "trust_region": ICEPOP}),
]


@pytest.fixture(scope="module")
def two_ranks(model_folder, reference_folder, tmp_path_factory) -> Path:
    """The folder with what two ranks ended with in every case."""
    out = tmp_path_factory.mktemp("ranks")
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    arguments = (port, model_folder, reference_folder, TWO_RANK_CASES, out)
    ranks = [spawn.Process(target=train_as_rank, args=(rank, *arguments)) for rank in range(2)]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=180)
        assert [process.exitcode for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    return out


@pytest.mark.integration
@pytest.mark.parametrize("case", TWO_RANK_CASES, ids=str)
def test_two_ranks_equal_plain_pytorch(model_folder, reference_folder, two_ranks, case):
    number = TWO_RANK_CASES.index(case)
    found, other = (load_file(two_ranks / f"{number}.{rank}.safetensors") for rank in range(2))
    for name, tensor in found.items():
        assert torch.equal(tensor.nan_to_num(-1), other[name].nan_to_num(-1)), name

    plain = PlainPyTorch(model_folder, case.config(reference_folder))
    if "penalty" in found:
        torch.testing.assert_close(found["penalty"], plain.reference_penalty(case.batch), rtol=1e-4, atol=1e-5)
    norm = plain.train(case.batch)
    metrics = TrainMetrics(*found["metrics"].tolist())
    gradients, weights = (
        {name.removeprefix(kind): tensor for name, tensor in found.items() if name.startswith(kind)}
        for kind in ("gradient.", "weight.")
    )
    if metrics.optimizer_steps > 1:  # their rounding errors grow
        assert metrics.gradient_norm == pytest.approx(norm, rel=1e-3)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, plain.gradients[name], rtol=1e-3, atol=1e-3)
        return
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert_same_update(gradients, weights, plain)

    alone = make_policy(model_folder, case.config(reference_folder)).train(case.batch)
    assert metrics.forward_tokens >= alone.forward_tokens  # a rank short of work runs a sequence without weight
    for name, value in asdict(replace(alone, forward_tokens=metrics.forward_tokens)).items():
        expected = math.nan if value is None else value
        assert getattr(metrics, name) == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True), name
