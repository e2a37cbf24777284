"""From the kept data to docs/learning.md and its figures; no run is needed for it."""

from __future__ import annotations

from pathlib import Path

from launch.experiments.results import load_results
from launch.experiments.tables import all_tables, fill


def data_folder(docs: Path) -> Path:
    """Where the condensed runs are kept."""
    return docs / "learning" / "data"


def write_report(docs: Path) -> int:
    """Rewrite the tables in `docs`/learning.md and the figures in `docs`/learning; how many runs were there.

    Raises DataError when the data or the document's markers are not as they should be; nothing is written then.
    """
    from launch.experiments.plots import write_figures

    document = docs / "learning.md"
    results = load_results(data_folder(docs))
    text = fill(document.read_text(encoding="utf-8"), all_tables(results))
    write_figures(results, docs / "learning")
    document.write_text(text, encoding="utf-8")
    return len(results.runs)
