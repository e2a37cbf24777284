"""The page of one run, and of several: whole, alone in the world, and with everything from the model escaped."""

from __future__ import annotations

import importlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded_runs import WrittenJournal, step_record, text_ticket, write_journal, write_lines, write_records

from launch.cli import main
from launch.report.measures import PLOTS
from launch.run_records import read_run
from shared.episodes import Task

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">&amp;\x1b[2J\u202e'


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag):
        self.text += " " if tag in ("td", "th") else ""

    def handle_data(self, data):
        self.text += data


def page_of(*folders: Path, out: Path) -> tuple[str, Parsed]:
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    text = (out / "index.html").read_text()
    return text, Parsed(text)


@pytest.fixture
def mine(tmp_path) -> Path:
    return make_run(tmp_path / "mine")


def make_run(folder: Path) -> Path:
    write_records(folder, 4, **{"learner.lr": 0.25})
    write_journal(folder)
    (folder / "summary.json").write_text(json.dumps({"wall_s": 12.0}))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str, Parsed]:
    """The report's folder, its page, and what that says, of a run with nothing amiss."""
    place = tmp_path_factory.mktemp("whole")
    return place / "out", *page_of(make_run(place / "mine"), out=place / "out")


def test_the_page_needs_nothing_from_elsewhere(whole):
    out, text, page = whole
    assert len(text) < 5 * 2**20
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert not re.search(r"url\(|@import|https?://", text)
    pictures = {path.stem for path in out.glob("*.png")}
    assert len(pictures) == len(page.links)
    assert {"proposer-reward", "accuracy", "valid-proposals", "solve-rate-spread", "distinct-problems"} <= pictures
    assert {"entropy", "ratio", "staleness", "mismatch", "throughput", "time"} <= pictures


def test_the_page_says_what_the_run_came_to(whole):
    said = " ".join(whole[2].text.split())
    assert "Run mine" in said
    assert "steps 4 of 4 ended yes wall time 12 s episodes 400 tokens generated 2,400" in said
    assert "mean of tasks 0.250 → 0.650" in said
    assert "waiting for the batch 4.0 50%" in said
    assert "all steps 8.0 100%" in said
    assert "learner.lr 0.25 1e-06" in said


def test_sample_episodes_are_of_the_start_the_middle_and_the_end(whole):
    page = whole[2]
    moments = re.findall(r"(start|middle|end): step (\d)", page.text)
    assert moments == [("start", "1"), ("middle", "3"), ("end", "4")]
    assert page.tags.count("article") == 3 * 3 * 2
    assert "Find y with 3 * y = 1 (mod 7)" in page.text
    assert "valid, with a solve rate of 0.5: learnability 1 − 0.5" in page.text


def test_model_text_is_escaped_and_its_control_characters_are_shown(tmp_path):
    folder = write_records(tmp_path / "evil", 1)
    journal = WrittenJournal(folder)
    journal.train(0, text_ticket(0, 0, proposal=EVIL, answers=(EVIL, "5")))
    journal.close()
    text, page = page_of(folder, out=tmp_path / "out")
    assert "&lt;script&gt;alert(1)" in text
    assert not {"script", "onerror"} & set(page.tags)
    assert all(link.startswith("data:") for link in page.links)
    shown = EVIL.replace("\x1b", "␛").replace("\u202e", "\\u202e")
    assert page.text.count(f"{shown}<end>") == 2
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_line_feed_that_model_text_begins_with_is_shown(tmp_path):
    folder = write_records(tmp_path / "mine", 1)
    journal = WrittenJournal(folder)
    journal.train(0, text_ticket(0, 0, proposal="\n3, 7"))
    journal.close()
    text, _ = page_of(folder, out=tmp_path / "out")
    assert '<pre class="response">\n\n3, 7&lt;end&gt;</pre>' in text  # a browser leaves the first one out


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_of_no_step_or_one_has_a_page(tmp_path, steps):
    folder = write_records(tmp_path / "short", steps)
    write_journal(folder, steps)
    _, page = page_of(folder, out=tmp_path / "out")
    assert ("No training step is on record." in page.text) == (steps == 0)
    assert ("the journal holds no trained step" in page.text) == (steps == 0)
    assert (tmp_path / "out/accuracy.png").exists()
    assert (tmp_path / "out/entropy.png").exists() == (steps == 1)


def test_a_run_of_one_task_has_a_page(tmp_path):
    folder = write_records(tmp_path / "one", 2, [Task.INDUCTION])
    write_journal(folder, 2, [Task.INDUCTION])
    _, page = page_of(folder, out=tmp_path / "out")
    assert "induction" in page.text
    assert "abduction" not in page.text.partition("Configuration")[0]


def test_the_mean_of_one_task_does_not_hide_it(tmp_path):
    (accuracy,) = [plot for plot in PLOTS if plot.key == "accuracy"]

    def labels(tasks: list[Task]) -> list[str]:
        run = read_run(write_records(tmp_path / f"of-{len(tasks)}", 2, tasks))
        assert accuracy.combined(run) is not None
        return [curve.label for curve in accuracy.told_apart(run)]

    assert labels([Task.INDUCTION]) == ["induction"]
    assert labels([Task.DEDUCTION, Task.INDUCTION]) == ["deduction", "induction", "mean of tasks"]


def test_what_is_missing_is_said(tmp_path):
    folder = write_records(tmp_path / "old", 2)
    write_lines(folder / "metrics.jsonl", [{"step": 1}, {"step": 2, "learner": {"entropy": 0.5}}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lea')
    (folder / "evaluations.jsonl").unlink()
    _, page = page_of(folder, out=tmp_path / "out")
    assert "No evaluation is on record." in page.text
    assert "There are no sample episodes" in page.text
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"entropy"}
    assert "steps 2 of 2" in page.text


def test_a_comparison_has_a_line_for_each_run_and_says_what_differs(mine, tmp_path):
    other = write_records(tmp_path / "a$b <other>".replace(" ", "_"), 2, **{"run.name": "other"})
    write_lines(other / "metrics.jsonl", [step_record(1)])
    _, page = page_of(mine, other, out=tmp_path / "out")
    said = " ".join(page.text.split())
    assert "mine and a$b_<other>" in said
    assert "mean of tasks 0.250 → 0.650 0.250 → 0.450" in said
    differing = said.partition("What differs in the configuration")[2].partition("Curves")[0]
    assert differing.split() == ["key", "mine", "a$b_<other>", "run.steps", "4", "2", "learner.lr", "0.25", "1e-06"]
    assert "article" not in page.tags
    assert "Valid proposals: mean of tasks" in said
    assert "Response length: mean of proposer and solver" in said
    assert "Staleness: mean of tokens" in said


def test_two_runs_of_one_name_cannot_be_told_apart(mine, tmp_path, capsys):
    assert main(["report", str(mine), str(mine)]) == 1
    assert "two of the runs are called mine" in capsys.readouterr().err
    assert main(["report", *[str(mine)] * 11]) == 1
    assert "11 runs are too many to tell apart" in capsys.readouterr().err


def test_by_default_it_goes_into_the_runs_folder_which_stays_fit_to_be_resumed(tmp_path, capsys):
    mine = write_records(tmp_path / "mine", 0)
    before = os.umask(0o002)
    try:
        assert main(["report", str(mine)]) == 0
    finally:
        os.umask(before)
    assert str(mine / "report/index.html") in capsys.readouterr().out
    assert (mine / "report").stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("fault", ["No module named 'matplotlib'", "libfreetype.so.6: cannot open shared object file"])
def test_without_a_matplotlib_that_works_it_says_how_to_install_it(mine, monkeypatch, capsys, fault):
    def fails(_):
        raise ImportError(fault)

    monkeypatch.setattr(importlib, "import_module", fails)
    assert main(["report", str(mine)]) == 1
    assert f"({fault}): pip install 'primezero[report]'" in capsys.readouterr().err


def test_damaged_records_are_left_out_and_said_so(mine, capsys):
    with (mine / "metrics.jsonl").open("a") as metrics:
        metrics.write("no record\n")
    assert main(["report", str(mine)]) == 0
    assert "metrics.jsonl is damaged: 1 of its lines cannot be read" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(mine, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", str(mine), "--out", str(tmp_path / "file" / "out")]) == 1
    assert "choose a place with --out" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "name the folder of a run" in capsys.readouterr().err
