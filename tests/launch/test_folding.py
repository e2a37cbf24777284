import io

from launch.folding import folded, for_screen


def test_lines_are_folded_between_words_and_long_words_stay_whole():
    path = "/a/rather/long-path/that/does-not/fit/onto/a/line"
    text = f"see {path} for what is wrong with it\n\n  and indented\nshort"
    assert folded(text, 30).split("\n") == ["see", path, "for what is wrong with it", "", "  and indented", "short"]


def test_added_lines_begin_as_told_and_a_terminal_without_a_width_does_no_harm():
    assert folded("one two three four five six", 22, later="    ") == "one two three four\n    five six"
    assert folded("one two three", 0) == "one two three"


def test_only_what_a_terminal_shows_is_folded(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "24")
    assert for_screen("   one two three four five", Terminal(), later="   ") == "   one two three four\n   five"
    assert for_screen("   one two three four five", io.StringIO()) == "   one two three four five"
