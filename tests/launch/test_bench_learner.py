"""`primezero bench learner` with a tiny model: real updates, on real batches."""

import json
from pathlib import Path

import pytest
import torch

from launch.bench.models import bench_model
from launch.bench.training_arms import BareLoop, PaddedLoop, make_policy, plan_of
from launch.bench.training_batch import made_batch, shared_batch, with_common_beginnings, with_own_prompts
from launch.bench.training_flops import model_flops, peak_flops
from launch.bench.training_memory import step_memory
from launch.cli import main
from learner.prompt_groups import group_rows
from shared.config import LearnerConfig

SIZES = {"prompt_tokens": 6, "response_tokens": 10, "spread": 0.6}


@pytest.mark.integration
def test_the_report_has_every_figure_beside_its_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--vocabulary 64 --rounds 2 --rows 12 --prompt-tokens 6 --response-tokens 10 --padded-rows 2,4"
    batches = "--merged-rows 12 --merged-distinct 4 --shared-prompts 3"
    memory = "--memory-model tiny --memory-rows 4 --memory-large-vocabulary 4096"
    file = tmp_path / "learner.json"
    assert main(["bench", "learner", *f"{sizes} {batches} {memory}".split(), "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert (report["benchmark"], report["model"]["name"]) == ("learner", "tiny")
    results = {result["name"]: result for result in report["results"]}
    assert len(results) == len(report["results"])
    values = {name: result["value"] for name, result in results.items()}
    named = {
        "vs_bare",
        "vs_padded",
        "padding_share",
        "merging",
        "sharing",
        "beginnings",
        "peak_memory_vocab",
        "tokens_per_s",
    }
    assert values.keys() >= named
    assert ("mfu" in values) == (peak_flops("float32") is not None)

    batch = made_batch(rows=12, distinct=12, vocabulary=64, **SIZES)
    assert values["tokens"] == (batch.prompt_lengths + batch.response_lengths).sum()
    assert values["tokens_per_s"] == pytest.approx(values["tokens"] / values["policy_step"])
    assert results["tokens_per_s"]["reference"] == pytest.approx(values["tokens"] / values["bare_step"])
    assert values["padded_rows"] in (2, 4)
    assert values["padding_share"] == 0 < results["padding_share"]["reference"] < 1
    assert results["merging"]["reference"] == 3
    assert results["sharing"]["reference"] > 4, "eight share a prompt of 140 tokens"
    assert results["beginnings"]["reference"] > 1.2, "all but 24 of these tokens are those of other prompts too"
    assert min(values[name] for name in ("vs_bare", "vs_padded", "merging", "merged_step")) > 0

    assert results["memory_own"]["value"] * 2**20 == 4096 * 64 * (2 + 16)
    beside = [results["peak_memory"][key] - results["memory_own"][key] for key in ("value", "reference")]
    assert values["peak_memory_vocab"] == pytest.approx(beside[0] / beside[1])
    assert all(results["peak_memory"][key] > results["memory_before"][key] for key in ("value", "reference"))
    assert "vs_bare" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--measures speed,nothing", "--measures nothing"),
        ("--dtype float16", "--dtype float16"),
        ("--rounds 0", "--rounds must"),
        ("--padded-rows 2,x", "--padded-rows"),
        ("--merged-distinct 900", "--merged-distinct"),
        ("--shared-prompts 4096", "--shared-prompts"),
        ("--spread -1", "--spread"),
        ("--memory-model models/x", "--memory-model"),
    ],
)
def test_impossible_settings_are_named(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "learner", *options.split()]) != 0
    assert message in capsys.readouterr().err


def test_a_made_batch_has_the_distinct_rows_and_the_lengths_asked_for() -> None:
    batch = made_batch(rows=300, distinct=99, vocabulary=500, **SIZES)
    assert sum(len(group.responses) for group in group_rows(batch)) == 99
    assert batch.response_lengths.median() == 10
    assert batch.prompt_lengths.median() == 6
    assert batch.response_lengths.max() == 40  # cut
    assert batch.response_lengths.double().log().std() == pytest.approx(0.6, abs=0.1)
    assert batch.prompt_lengths.double().log().std() == pytest.approx(0.3, abs=0.1)
    even = made_batch(rows=8, distinct=8, vocabulary=500, prompt_tokens=6, response_tokens=10, spread=0)
    assert set(even.response_lengths.tolist()) == {10}


def test_shared_prompts_can_be_told_apart_without_other_lengths() -> None:
    shared = shared_batch(prompts=9, attempts=8, vocabulary=500, **SIZES)
    assert [len(group.responses) for group in group_rows(shared)] == [8] * 9
    own = with_own_prompts(shared)
    assert len(group_rows(own)) == 72
    assert own.prompt_lengths.equal(shared.prompt_lengths)
    for (_, ours), (_, theirs) in zip(own.rows(), shared.rows(), strict=True):
        assert ours.equal(theirs)
    alike = with_common_beginnings(shared, 2)
    assert [len(group.responses) for group in group_rows(alike)] == [8] * 9
    longest = max((prompt for prompt, _ in shared.rows()), key=len)
    for (prompt, ours), (before, theirs) in zip(alike.rows(), shared.rows(), strict=True):
        assert prompt.equal(torch.cat([longest[: len(before) - 2], before[-2:]]))
        assert ours.equal(theirs)


def test_the_loops_compute_the_gradient_that_they_are_compared_for() -> None:
    """Both are the policy's gradient where there is nothing but advantages: all three train on the same."""
    region = LearnerConfig().trust_region.model_copy(update={"correction": "none"})
    config = LearnerConfig(
        max_tokens=100, entropy_coefficient=0, trust_region=region, betas=(0.0, 0.9), gradient_clip=1e9, lr=0.0
    )
    batch = made_batch(rows=10, distinct=10, vocabulary=64, **SIZES)
    with bench_model("tiny", vocabulary=64, dtype="float32") as model:
        policy = make_policy(model.folder, "float32", config)
        loops = [BareLoop(model.folder, "float32", config, batch), PaddedLoop(model.folder, "float32", config, batch)]
    assert len(plan_of(batch, config).ranks[0]) > 1
    norm = policy.train(batch).gradient_norm
    for loop in loops:
        loop.size = 3  # type: ignore[attr-defined]
        loop.train()
        moments = [loop._optimizer.state[p]["exp_avg"] for p in loop.model.parameters()]
        assert float(torch.nn.utils.get_total_norm(moments)) == pytest.approx(norm, rel=1e-4)


@pytest.mark.integration
def test_memory_counts_what_a_step_allocates() -> None:
    """Four times the tokens take more memory, and no more is before than weights, gradients and optimizer need."""
    sizes = {**SIZES, "threads": 1, "max_tokens": 16384}
    small, large = (step_memory("tiny", "bfloat16", 64, rows, **sizes) for rows in (16, 64))
    assert small.own == large.own == 64 * 64 * 18
    assert large.peak - large.before > 2 * (small.peak - small.before)
    assert large.before == pytest.approx(small.before, rel=0.2)


def test_flops_are_six_for_each_weight_a_token_meets() -> None:
    batch = made_batch(rows=4, distinct=4, vocabulary=64, **SIZES)
    with bench_model("tiny", vocabulary=64, dtype="float32") as model:
        found = model_flops(model.folder, 100_000, batch)
    lengths = batch.prompt_lengths + batch.response_lengths
    layers = 6 * (100_000 - 64 * 64) * int(lengths.sum())
    head = 6 * 64 * 64 * int(batch.response_lengths.sum())
    assert found == layers + head + 6 * 2 * 64 * int((lengths**2).sum())
