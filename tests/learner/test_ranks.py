"""Two ranks do what one would; rank 0 alone decides."""

from pathlib import Path

import msgspec
import pytest
import torch
from plain_policy import (
    CONFIG,
    ICEPOP,
    SEQUENCE_MASK,
    SEVERAL_STEPS,
    PlainPyTorch,
    assert_same_update,
    flat,
    make_policy,
    weights_of,
)
from random_batches import random_batch
from rank_processes import SCORED, Case, metrics_in, named, records_of, run_ranks

import learner.ranks
from learner.ranks import MAX_STEP_BYTES, Leader, Score, _Channel

# The fifth and the last but one have one row: the second rank has nothing to do but keep up.
CASES = [
    Case(0, 30),
    Case(1, 1000),
    Case(1, 30, kept=True),
    Case(2, 30),
    Case(1, 1000, rows=1),
    Case(1, 30, changes={"kl_coefficient": 0.3, "kl_estimator": "k3", "trust_region": SEQUENCE_MASK}),
    Case(1, 30, changes={"kl_coefficient": 0.3, "kl_estimator": "k1"}),
    Case(2, 40, changes=SEVERAL_STEPS | {"kl_coefficient": 0.3, "kl_estimator": "k2", "trust_region": ICEPOP}),
    Case(3, 30, changes={"kl_coefficient": 0.3, "kl_estimator": "k1"}, kept=True),
    Case(3, 1000, rows=1),
    Case(3, 40, 14, SEVERAL_STEPS | {"kl_coefficient": 0.3, "kl_estimator": "k2", "trust_region": ICEPOP}, kept=True),
]


@pytest.fixture(scope="module")
def two_ranks(model_folder, reference_folder, tmp_path_factory) -> Path:
    """The folder with what two ranks ended with in every case."""
    out = tmp_path_factory.mktemp("ranks")
    run_ranks(2, model_folder, reference_folder, CASES, out)
    return out


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_equal_plain_pytorch(model_folder, reference_folder, two_ranks, case, single_process):
    found, other = records_of(two_ranks, CASES.index(case), 2)
    assert found.keys() - other.keys() == {name for name in found if name == "score" or name.startswith("sent.")}
    for name in other.keys() - {"tokens"}:
        assert torch.equal(found[name], other[name]), name
    assert len(found["tokens"]) == len(other["tokens"])

    plain = PlainPyTorch(model_folder, case.config(reference_folder))
    if "penalty" in found:
        torch.testing.assert_close(found["penalty"], plain.reference_penalty(case.batch), rtol=1e-4, atol=1e-5)
    norm = plain.train(case.batch)
    metrics = metrics_in(found)
    gradients, weights = named(found, "gradient"), named(found, "weight")
    if metrics.optimizer_steps > 1:  # their rounding errors grow
        assert metrics.gradient_norm == pytest.approx(norm, rel=1e-3)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, plain.gradients[name], rtol=1e-3, atol=1e-3)
        return
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert_same_update(gradients, weights, plain)

    alone = flat(make_policy(model_folder, case.config(reference_folder)).train(case.batch))
    numbers = flat(metrics)
    # A rank short of work runs a sequence without weight.
    assert numbers.pop("forward_tokens") >= alone.pop("forward_tokens")
    assert numbers == pytest.approx(alone, rel=1e-5, abs=1e-7)


@pytest.mark.integration
@pytest.mark.parametrize("case", [case for case in CASES if case.kept], ids=str)
def test_two_ranks_score_send_save_and_restore_what_they_have(two_ranks, case, single_process):
    found, other = records_of(two_ranks, CASES.index(case), 2)
    folder = two_ranks / str(CASES.index(case))
    weights = named(found, "weight")
    for name, weight in weights.items():
        assert torch.equal(found[f"sent.{name}"], weight), name
    exported = make_policy(folder / "model")
    for name, weight in weights_of(exported).items():
        assert torch.equal(weight, weights[name]), name
    assert found["score"].tolist() == pytest.approx(exported.score(SCORED).tolist(), abs=1e-6)
    assert metrics_in(found, "restored") == metrics_in(found, "went on") == metrics_in(other, "restored")


def test_one_rank_alone_announces_nothing(model_folder, single_process, monkeypatch):
    policy = make_policy(model_folder, CONFIG.model_copy(update={"zero_stage": 3}))
    monkeypatch.setattr(learner.ranks, "_Channel", None)
    leader = Leader(policy)
    leader.train(random_batch())
    assert len(leader.score(SCORED)) == len(SCORED) - 1
    leader.stop()


def test_a_step_is_typed_and_bounded(model_folder, single_process, monkeypatch):
    make_policy(model_folder)  # for its process group
    channel = _Channel()
    with pytest.raises(ValueError, match="is not announced"):
        channel.send(Score((0,) * (MAX_STEP_BYTES + 1)))

    def announce(data: bytes) -> None:
        sent = iter([torch.tensor([len(data)]), torch.frombuffer(bytearray(data), dtype=torch.uint8)])
        monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, **_: tensor.copy_(next(sent)))

    announce(msgspec.msgpack.encode(Score((1, 2))))
    assert channel.receive() == Score((1, 2))
    announce(msgspec.msgpack.encode({"type": "Score", "token_ids": "all"}))
    with pytest.raises(msgspec.ValidationError):
        channel.receive()
    announce(msgspec.msgpack.encode({"type": "Run", "command": "ls"}))
    with pytest.raises(msgspec.ValidationError):
        channel.receive()
