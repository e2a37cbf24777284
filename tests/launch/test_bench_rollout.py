"""`primezero bench rollout` on a real engine, stream and learner's end, with a tiny model."""

import json
from pathlib import Path

import pytest

from launch.cli import main

FIGURES = {
    *("worker_vs_engine", "tokens_per_s", "tokens", "tickets", "valid_proposals", "rejected", "batch_fullness"),
    *("mean_batch", "steps", "cpu_per_token", "cpu_per_ticket"),
    *(f"cpu_per_ticket.{part}" for part in ("prompts", "parsing", "records", "encoding")),
}
SIZES = (
    "--vocabulary 600 --proposals-per-task 3 --buffer-problems-per-task 2 --attempts 2 --response-tokens 5 --rounds 2"
)


@pytest.mark.integration
def test_both_arms_sample_the_same_and_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [*SIZES.split(), "--max-sequences", "8", "--max-open-tickets", "10"]
    assert main(["bench", "rollout", *sizes, "--json", str(tmp_path / "rollout.json")]) == 0
    report = json.loads((tmp_path / "rollout.json").read_text())
    assert (report["benchmark"], report["model"]["name"]) == ("rollout", "tiny")
    results = {result["name"]: result for result in report["results"]}
    assert len(results) == len(report["results"])
    assert results.keys() >= FIGURES

    value = {name: result["value"] for name, result in results.items()}
    reference = {name: result["reference"] for name, result in results.items()}
    assert value["tickets"] == 3 * (3 + 2)
    assert reference["valid_proposals"] == 3 * 3
    assert value["rejected"] == 0
    sequences = 9 + 15 * 2
    assert value["tokens"] == reference["tokens"], "vLLM alone was asked for something else"
    assert sequences <= value["tokens"] <= 5 * sequences
    assert 0 < value["batch_fullness"] <= 1
    assert value["mean_batch"] * value["steps"] == pytest.approx(value["tokens"], rel=0.05)
    assert value["worker_vs_engine_min"] <= value["worker_vs_engine"] <= value["worker_vs_engine_max"]
    parts = [value[f"cpu_per_ticket.{part}"] for part in ("prompts", "parsing", "records", "encoding")]
    assert min(parts) > 0
    assert sum(parts) < reference["cpu_per_ticket.prompts"]
    assert "worker_vs_engine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--prompts none", "there is short, instruct"),
        ("--dtype int8", "there is bfloat16, float32"),
        ("--rounds 0", "--rounds must be at least 1"),
        ("--attempts 1", "--attempts"),
    ],
)
def test_impossible_sizes_are_refused(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rollout", *arguments.split()]) != 0
    assert said in capsys.readouterr().err
