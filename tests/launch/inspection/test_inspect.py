"""`primezero inspect`: what is found, and that nothing a model wrote is obeyed by the terminal."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_runs import WrittenJournal, text_ticket, write_journal, write_records

from launch.cli import main
from shared.episodes import Task, Verdict

ROOT = Path(__file__).parents[3]
EVIL = "\x1b[2J\x1b]0;owned\x07\u202e[bold red]\r!"
SHOWN = r"␛[2J␛]0;owned␇\u202e[bold red]␍!"


@pytest.fixture
def mine(tmp_path) -> Path:
    folder = write_records(tmp_path / "mine", 3)
    journal = WrittenJournal(folder)
    journal.train(
        0, text_ticket(0, 0, answers=("5", "4", "4", "4")), text_ticket(0, 1, task=Task.INDUCTION, proposal="9")
    )
    journal.train(1, text_ticket(1, 0, proposal=EVIL, verdict=Verdict.UNPARSABLE, answers=("4", EVIL)))
    journal.take(text_ticket(2, 0, task=Task.ABDUCTION))
    journal.close()
    return folder


def names(capsys, folder: Path, *arguments: str) -> list[str]:
    """The episodes that are listed."""
    assert main(["inspect", str(folder), *arguments]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["episode", "task", "verdict", "reward", "logprob", "response"]
    return [line.split()[0] for line in lines]


FIRST = ["1/0/p", "1/0/1", "1/0/2", "1/0/3", "1/0/4", "1/1/p", "1/1/1", "1/1/2"]
SECOND = ["2/0/p", "2/0/1", "2/0/2"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", FIRST + SECOND),
        ("--step 1", FIRST),
        ("--step last", SECOND),
        ("--step 2..7", SECOND),
        ("--role proposer", ["1/0/p", "1/1/p", "2/0/p"]),
        ("--task induction", ["1/1/p", "1/1/1", "1/1/2"]),
        ("--verdict correct", ["1/0/1", "1/1/1"]),
        ("--min-reward 0.5 --role proposer", ["1/0/p", "1/1/p"]),
        ("--max-reward -1", ["2/0/p"]),
        ("--min-reward 0.6 --max-reward 0.8", ["1/0/p"]),
        ("--limit 2", ["1/0/p", "1/0/1"]),
        ("--limit 11", FIRST + SECOND),
        ("--untrained --step 3", ["3/0/p", "3/0/1", "3/0/2"]),
    ],
)
def test_episodes_are_found_by_what_they_are(mine, capsys, arguments, expected):
    assert names(capsys, mine, *arguments.split()) == expected


def test_it_says_when_there_are_more(mine, capsys):
    main(["inspect", str(mine), "--limit", "10"])
    assert "there are more than 10" in capsys.readouterr().err
    main(["inspect", str(mine), "--limit", "11"])
    assert capsys.readouterr().err == ""


def test_one_episode_in_full(mine, capsys):
    assert main(["inspect", str(mine), "1/0/p", "--tokens"]) == 0
    out = capsys.readouterr().out
    assert "proposer, deduction: valid, reward +0.750" in out
    assert "valid, with a solve rate of 0.25: learnability 1 − 0.25" in out
    assert "Find y with 3 * y = 1 (mod 7)" in out
    assert "3, 7<end>" in out
    rows = [line.strip("│ ").split() for line in out.splitlines() if line.endswith("0 │") or " 0  " in line]
    assert ["0", "51", "-0.000", "1.000", "0", "3"] in rows
    assert ["4", "0", "-4.000", "0.018", "0", "<end>"] in rows


def test_an_episode_that_was_not_trained_is_shown_with_its_fate(mine, capsys):
    assert main(["inspect", str(mine), "3/0/1"]) == 0
    assert "; open" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", ["--step 2 --full", "--step 2 --tokens", "2/0/p"])
@pytest.mark.parametrize("columns", ["80", "160"])
def test_nothing_that_a_model_wrote_is_obeyed_and_lines_fit(mine, capsys, monkeypatch, arguments, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["inspect", str(mine), *arguments.split()]) == 0
    out = capsys.readouterr().out
    assert "␛[2J␛]0;owned␇" in out
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(out)
    assert max(map(len, out.splitlines())) <= int(columns)


def test_a_list_fits_onto_a_terminal_and_is_whole_elsewhere(mine, capsys, monkeypatch):
    def lines() -> list[str]:
        main(["inspect", str(mine), "--step", "2"])
        return capsys.readouterr().out.splitlines()

    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.delenv("NO_COLOR", raising=False)
    whole = lines()
    assert whole[1].split(maxsplit=5) == ["2/0/p", "deduction", "unparsable", "-1.00", "-13.50", SHOWN + "<end>"]
    assert not set("\x1b\x07\r\u202e") & set("".join(whole))
    monkeypatch.setenv("FORCE_COLOR", "1")
    row = lines()[1]
    assert "\x1b[31munparsable\x1b[0m" in row
    assert re.sub(r"\x1b\[[0-9;]*m", "", row) == whole[1][:69] + "…"


def test_what_an_output_has_no_character_for_is_spelled_out(mine, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer := io.BytesIO(), encoding="ascii"))
    assert main(["inspect", str(mine), "2/0/p"]) == 0
    assert b"\\u241b[2J" in buffer.getvalue()


def test_colours_go_through_a_pager_that_shows_them(mine, monkeypatch):
    from rich.console import Console

    from launch.inspection.command import _paged

    def paged() -> str:
        shown = []
        monkeypatch.setattr("rich.pager.SystemPager.show", lambda _, content: shown.append(content))
        console = Console(force_terminal=True, color_system="standard", width=80)
        with _paged(console):
            console.print("[red]x")
        return shown[0]

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setenv("LESS", "-i")
    assert paged() == "x\n"
    monkeypatch.delenv("LESS")
    assert paged() == "\x1b[31mx\x1b[0m\n"


def test_a_token_shows_the_spaces_that_are_in_it(tmp_path, capsys):
    folder = write_records(tmp_path / "spaces", 1)
    journal = WrittenJournal(folder)
    journal.train(0, text_ticket(0, 0, proposal="3 7"))
    journal.close()
    assert main(["inspect", str(folder), "1/0/p", "--tokens"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"1 +32 +-1\.000 +0\.368 +0  ␣ ", out)
    assert "weight version 0 " in out


def test_markup_in_text_is_text(mine, capsys):
    main(["inspect", str(mine), "2/0/p"])
    assert "[bold red]" in capsys.readouterr().out


def test_json_holds_everything_a_line_for_each(mine, capsys):
    assert main(["inspect", str(mine), "--json", "--limit", "0"]) == 0
    out = capsys.readouterr().out
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["episode"] for record in records] == FIRST + SECOND
    attempt = records[1]
    assert attempt["tokens"] == [
        {"id": 53, "text": "5", "logprob": 0.0, "version": 0},
        {"id": 0, "text": "<end>", "logprob": -1.0, "version": 0},
    ]
    kept = ("role", "task", "verdict", "reward", "reason", "problem", "accepted", "solve_rate", "response", "fate")
    assert [attempt[key] for key in kept] == [
        "solver",
        "deduction",
        "correct",
        1.0,
        "an accepted answer",
        "3,7",
        "5",
        0.25,
        "5<end>",
        "trained",
    ]
    assert records[8]["response"] == f"{EVIL}<end>"
    assert out.isascii()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "9"], "no such episode in .*: its trained steps are 1 to 2"),
        (["--step", "3..2"], "--step 3..2: write a training step"),
        (["--step", "-1"], "--step -1: write a training step"),
        (["1/0"], "'1/0' is not an episode"),
        (["1/0/9"], "no such episode"),
        (["--limit", "-1"], "--limit -1"),
        (["--learner.lr", "1"], "`primezero inspect` has no configuration"),
        (["--tokenizer", "none"], "cannot load a tokenizer from none"),
    ],
)
def test_what_cannot_be_shown_is_explained(mine, capsys, arguments, said):
    assert main(["inspect", str(mine), *arguments]) == 1
    assert re.search(said, capsys.readouterr().err)


def test_a_damaged_journal_is_called_so(mine, capsys):
    (mine / "journal").write_bytes(b"no record")
    assert main(["inspect", str(mine)]) == 1
    assert "its journal is damaged, from the beginning" in capsys.readouterr().err


def test_a_run_whose_tokenizer_is_gone_asks_for_one(mine, capsys, tmp_path):
    tokenizer = mine / "model" / "tokenizer.json"
    tokenizer.rename(tmp_path / "tokenizer.json")
    assert main(["inspect", str(mine)]) == 1
    assert "--tokenizer FOLDER" in capsys.readouterr().err
    assert main(["inspect", str(mine), "--tokenizer", str(tmp_path), "--limit", "1"]) == 0


def test_a_run_without_a_trained_step_says_so(tmp_path, capsys):
    folder = write_records(tmp_path / "new", 0)
    write_journal(folder, 0)
    assert main(["inspect", str(folder)]) == 1
    assert "no step was trained yet" in capsys.readouterr().err
    assert main(["inspect", str(folder), "--step", "last"]) == 1
    assert "--step last: no step was trained yet" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "begins"), [("--json", '{"episode": "1/0/p"'), ("--full", "╭─ 1/0/p")])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, form, begins):
    folder = write_records(tmp_path / "long", 3)
    write_journal(folder, 60)
    command = [sys.executable, "-m", "launch.cli", "inspect", str(folder), form, "--limit", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(begins)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141
