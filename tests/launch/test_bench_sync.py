"""`primezero bench sync` on a real engine with a tiny model."""

import json
from pathlib import Path

import pytest

from launch.cli import main

FIGURES = {
    *("pause", "tokens_lost", "bytes", "calls", "stage", "swap", "resume", "engine_pause", "gb_per_s", "plain_copy"),
}


@pytest.mark.integration
@pytest.mark.timeout(1200)  # two engines
def test_the_report_has_every_figure_beside_its_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--model tiny --vocabulary 64 --syncs 2 --requests 4 --prompt-tokens 8 --steady-steps 4 --steady-s 0.1"
    assert (
        main(["bench", "sync", *sizes.split(), "--modes", "keep,keep_kv", "--json", str(tmp_path / "sync.json")]) == 0
    )
    report = json.loads((tmp_path / "sync.json").read_text())
    assert (report["benchmark"], report["model"]["name"], report["settings"]["headline"]) == ("sync", "tiny", "keep_kv")
    results = {result["name"]: result for result in report["results"]}
    assert len(results) == len(report["results"])
    assert results.keys() >= FIGURES | {f"{mode}.{name}" for mode in ("keep", "keep_kv") for name in FIGURES}
    for name in FIGURES:
        assert results[name]["value"] == results[f"keep_kv.{name}"]["value"]

    sent = report["model"]["parameters"] * 2
    assert sent <= results["bytes"]["value"] < sent * 1.1  # tensors are aligned
    assert results["bytes"]["reference"] == sent
    assert results["calls"]["value"] == 3
    values = {name: result["value"] for name, result in results.items()}
    for mode in ("keep", "keep_kv"):
        assert 0 < values[f"{mode}.swap"] < values[f"{mode}.engine_pause"]
        assert 0 < values[f"{mode}.write"] < values[f"{mode}.stage"]
        assert values[f"{mode}.silence"] <= values[f"{mode}.pause"]
        assert values[f"{mode}.pause_min"] <= values[f"{mode}.pause"] <= values[f"{mode}.pause_max"]
        assert values[f"{mode}.context"] >= 4 * (8 + 4)
    assert results["pause"]["reference"] == values["plain_copy"] > 0
    assert results["keep.resume"]["reference"] > 0
    assert results["keep_kv.resume"]["reference"] is None, "nothing was prefilled again"
    assert "tokens_lost" in capsys.readouterr().out
