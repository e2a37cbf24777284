import argparse

import pytest

from launch.help_format import HelpFormatter

DESCRIPTION = """\
A paragraph of a description that is folded to the width, though
it was written for another one, and `--an-option value` in it.
"""
EPILOG = """\
examples:
  primezero first
  primezero second --with.an.option some-value --and.another.one of-the-same --short 1 --last 2

What is said at the end, in a paragraph of its own that is folded too.
"""


def shown(monkeypatch, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser = argparse.ArgumentParser(
        prog="primezero", description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("a-long-name", help="does one thing")
    commands.add_parser("short", help="does another")
    return parser.format_help()


@pytest.mark.parametrize("columns", [50, 60, 80])
def test_it_fits_the_terminal_and_says_the_same(monkeypatch, columns):
    text = shown(monkeypatch, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert " ".join(DESCRIPTION.split()) in " ".join(text.split())
    joined = text.replace(" \\\n     ", "")
    assert set(EPILOG.splitlines()[:3]) <= set(joined.splitlines())


def test_an_example_goes_on_before_an_option(monkeypatch):
    lines = shown(monkeypatch, 60).splitlines()
    at = lines.index("  primezero second --with.an.option some-value \\")
    assert lines[at + 1 : at + 3] == ["      --and.another.one of-the-same --short 1 --last 2", ""]


def test_on_a_wide_terminal_paragraphs_stay_readable(monkeypatch):
    assert shown(monkeypatch, 300) == shown(monkeypatch, 100)


def test_names_of_commands_stand_beside_what_they_do(monkeypatch):
    assert "    a-long-name  does one thing\n    short        does another\n" in shown(monkeypatch, 80)
