"""A policy that was saved goes on as if nothing had happened."""

import pytest
from plain_policy import CONFIG, make_policy, weights_of
from random_batches import random_batch

from shared.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_restored_policy_goes_on_to_the_bit(model_folder, tmp_path, zero_stage):
    changes = {"zero_stage": zero_stage, "betas": (0.9, 0.95), "warmup_steps": 5, "entropy_target": 9.0}
    config = CONFIG.model_copy(update=changes)
    policy = make_policy(model_folder, config)
    batches = [random_batch(rows=14, seed=seed) for seed in range(3)]
    for batch in batches[:2]:
        policy.train(batch)
    (tmp_path / "policy").mkdir()
    policy.save(tmp_path / "policy")
    state = policy.state()
    uninterrupted = policy.train(batches[2])

    restored = make_policy(model_folder, config)
    restored.load(tmp_path / "policy", state)
    assert restored.train(batches[2]) == uninterrupted
    after = weights_of(restored)
    assert all(weight.equal(after[name]) for name, weight in weights_of(policy).items())


def test_a_policy_that_was_not_saved_cannot_be_restored(model_folder, tmp_path):
    policy = make_policy(model_folder)
    before = weights_of(policy)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        policy.load(tmp_path / "policy", policy.state())
    with pytest.raises(CheckpointError, match="cannot be restored"):
        policy.load(tmp_path / "policy", {"last_entropy": "high"})
    assert all(weight.equal(before[name]) for name, weight in weights_of(policy).items())


def test_what_deepspeed_does_not_find_is_an_error(model_folder, tmp_path, monkeypatch):
    policy = make_policy(model_folder)
    monkeypatch.setattr(policy._engine, "load_checkpoint", lambda *_, **__: (None, None))
    with pytest.raises(CheckpointError, match="cannot be restored"):
        policy.load(tmp_path, policy.state())
