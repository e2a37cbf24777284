"""`primezero bench sync` on a real engine with a tiny model."""

import json
from pathlib import Path

import pytest

from launch.cli import main

FIGURES = {
    *("pause", "tokens_lost", "bytes", "calls", "stage", "swap", "resume", "engine_pause", "gb_per_s", "plain_copy"),
}


@pytest.mark.integration
def test_the_report_has_every_figure_beside_its_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--model tiny --vocabulary 64 --syncs 2 --requests 4 --prompt-tokens 8 --steady-steps 4 --steady-s 0.1"
    assert main(["bench", "sync", *sizes.split(), "--modes", "keep", "--json", str(tmp_path / "sync.json")]) == 0
    report = json.loads((tmp_path / "sync.json").read_text())
    assert (report["benchmark"], report["model"]["name"], report["settings"]["headline"]) == ("sync", "tiny", "keep")
    results = {result["name"]: result for result in report["results"]}
    assert len(results) == len(report["results"])
    assert results.keys() >= FIGURES | {f"keep.{name}" for name in FIGURES}
    for name in FIGURES:
        assert results[name]["value"] == results[f"keep.{name}"]["value"]

    sent = report["model"]["parameters"] * 2
    assert sent <= results["bytes"]["value"] < sent * 1.1  # tensors are aligned
    assert results["bytes"]["reference"] == sent
    assert results["calls"]["value"] == 3
    values = {name: result["value"] for name, result in results.items()}
    assert 0 < values["swap"] < values["engine_pause"]
    assert 0 < values["keep.write"] < values["stage"]
    assert values["keep.silence"] <= values["pause"]
    assert values["keep.pause_min"] <= values["pause"] <= values["keep.pause_max"]
    assert values["keep.context"] >= 4 * (8 + 4)
    assert results["pause"]["reference"] == results["plain_copy"]["value"] > 0
    assert results["resume"]["reference"] > 0
    out = capsys.readouterr().out
    assert "tokens_lost" in out
