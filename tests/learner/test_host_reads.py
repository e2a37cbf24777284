"""From a step's first forward pass to its optimizer step the host reads nothing from the GPU."""

import pytest
import torch
from host_reads import HostReads
from plain_policy import CONFIG, PASSES, make_policy
from random_batches import random_batch

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: torch.bincount(x),
        lambda x: torch.nonzero(x),
        lambda x: torch.unique(x),
        lambda x: x.repeat_interleave(x),
        lambda x: x.index_put_((x > 0,), torch.zeros((), dtype=x.dtype)),
    ],
)
def test_a_read_is_found(read):
    with HostReads() as reads:
        read(torch.tensor([2, 1, 2]))
    assert reads.found


def test_what_needs_no_read_is_not_taken_for_one():
    x = torch.tensor([2, 1, 2])
    with HostReads() as reads:
        torch.zeros_like(x).index_add_(0, x, x[x].masked_fill(x > 1, 0)).repeat_interleave(
            torch.ones_like(x), output_size=3
        )
        torch.zeros_like(x).scatter_add_(0, x, x.cumsum(0))
    assert reads.found == []


@pytest.mark.parametrize("max_tokens", [1000, 15])
@pytest.mark.parametrize(
    "changes",
    [*PASSES, {"optimizer_steps_per_batch": 2}, {"zero_stage": 0}, {"zero_stage": 2}],
    ids=str,
)
def test_forward_loss_and_backward_read_nothing_on_the_host(model_folder, changes, max_tokens):
    policy = make_policy(model_folder, CONFIG.model_copy(update={"max_tokens": max_tokens, **changes}))
    batch = random_batch(rows=14, copies=2)
    policy.train(batch)  # what is asked once in the policy's life does not matter
    steps = [policy._own_micro_batches(policy._plan(part)) for part in batch.mini_batches(2)]
    with HostReads() as reads:
        old = [policy._frozen_logprobs(micro_batch) for micro_batch in steps[0]]
        for step, old_logprobs in zip(steps, (old, [None] * len(steps[1])), strict=True):
            policy._accumulate_gradients(step, old_logprobs)
    assert reads.found == []


def test_no_micro_batch_waits_for_the_device(model_folder, monkeypatch):
    """In four steps: DeepSpeed does some things from the third one on."""
    from deepspeed.accelerator import get_accelerator  # after learner.policy has chosen it

    waits = []
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: waits.append("accelerator"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.append("cuda"))
    policy = make_policy(model_folder, CONFIG.model_copy(update={"max_tokens": 15}))
    accumulate, during = policy._accumulate_gradients, []

    def counted(*arguments):
        before = len(waits)
        sums = accumulate(*arguments)
        during.append((len(sums), len(waits) - before))
        return sums

    monkeypatch.setattr(policy, "_accumulate_gradients", counted)
    for seed in range(4):
        policy.train(random_batch(rows=14, seed=seed))
    assert min(micro_batches for micro_batches, _ in during) > 3
    assert [waited for _, waited in during] == [0] * 4
    assert waits == []
