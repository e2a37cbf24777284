import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.printable import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x·y ≡ 1 (mod 7) é 素", "x·y ≡ 1 (mod 7) é 素"),
        ("\x1b[2J\x1b]0;owned\x07", "␛[2J␛]0;owned␇"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\tc\x7f", "a␍b␉c␡"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\U000e0041", "\\U000e0041"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_would_be_obeyed_is_spelled_out(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_nothing_but_visible_text_and_line_feeds_is_left(text):
    shown = printable(text)
    assert all(c == "\n" or (unicodedata.category(c)[0] in "LMNPSZ" and c not in "\u2028\u2029") for c in shown)
    assert printable(shown) == shown
    assert "\n" not in one_line(text)
