"""An optimizer in the host's memory is the same optimizer."""

import pytest
import torch
from plain_policy import CONFIG, make_policy, weights_of
from random_batches import random_batch

pytestmark = pytest.mark.usefixtures("single_process")
# Its first use compiles AdamW for the host's cores.
COMPILING_S = 1200


def config(*, offload: bool, zero_stage: int):
    changes = {"offload_optimizer": offload, "zero_stage": zero_stage, "betas": (0.9, 0.95), "max_tokens": 40}
    return CONFIG.model_copy(update=changes | {"gradient_clip": 1.0, "warmup_steps": 2})


@pytest.mark.timeout(COMPILING_S)
@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2e-6), ("bfloat16", 5e-4)])
def test_a_step_is_the_same_up_to_rounding(model_folder, dtype, rounding, zero_stage):
    offloaded, plain = (
        make_policy(model_folder, config(offload=offload, zero_stage=zero_stage), dtype) for offload in (True, False)
    )
    before = weights_of(plain)
    for seed in range(3):
        batch = random_batch(rows=14, seed=seed)
        norms = [policy.train(batch).gradient_norm for policy in (offloaded, plain)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    after = weights_of(plain)
    for name, weight in weights_of(offloaded).items():
        torch.testing.assert_close(weight, after[name], rtol=0, atol=rounding)
    assert sum(not after[name].equal(weight) for name, weight in before.items()) > len(before) / 2


@pytest.mark.timeout(COMPILING_S)
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_a_restored_policy_goes_on_to_the_bit(model_folder, tmp_path, zero_stage):
    batches = [random_batch(rows=14, seed=seed) for seed in range(3)]
    policy = make_policy(model_folder, config(offload=True, zero_stage=zero_stage), "bfloat16")
    for batch in batches[:2]:
        policy.train(batch)
    (tmp_path / "policy").mkdir()
    policy.save(tmp_path / "policy")
    state = policy.state()
    uninterrupted = policy.train(batches[2])

    restored = make_policy(model_folder, config(offload=True, zero_stage=zero_stage), "bfloat16")
    restored.load(tmp_path / "policy", state)
    assert restored.train(batches[2]) == uninterrupted
    after = weights_of(restored)
    assert all(weight.equal(after[name]) for name, weight in weights_of(policy).items())


def test_on_a_gpu_a_rank_is_held_to_its_share(model_folder, monkeypatch):
    """The first thing that it does there, so that nothing is allocated before."""
    asked = []

    def limit(share, device):
        asked.append((share, device))
        raise MemoryError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    with pytest.raises(MemoryError):
        make_policy(model_folder, CONFIG.model_copy(update={"gpu_memory_share": 0.7}), local_rank=1)
    assert asked == [(0.7, torch.device("cuda", 1))]
