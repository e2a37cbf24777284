import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.answers import answer_block, parse_answer


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("<answer>12</answer>", (12,)),
        ("<think>5?</think> so <answer>\n 12\t</answer> done", (12,)),
        ("<answer>-3</answer>", (-3,)),
        ("<answer>0</answer>", (0,)),
        ("<answer>007</answer>", (7,)),
        ("<answer>999999999999</answer>", (999999999999,)),
        ("<answer>1</answer> no, <answer>2</answer>", (2,)),
        ("<answer>1</answer> or <answer>2", (1,)),
        ("<answer>1<answer>2</answer>", (2,)),
        ("<answer>1</answer></answer>", (1,)),
        ("<answer>1</answer><answer>two</answer>", None),
        ("<answer>1</answer><answer>a<b</answer>", None),
        ("<answer>1</answer><answer></answer>", None),
        ("<answer>1000000000000</answer>", None),
        ("<answer>" + "9" * 100_000 + "</answer>", None),
        ("<answer>12,</answer>", None),
        ("<answer>1, 2</answer>", None),
        ("<answer>1 2</answer>", None),
        ("<answer>+1</answer>", None),
        ("<answer>--1</answer>", None),
        ("<answer>- 1</answer>", None),
        ("<answer>1.0</answer>", None),
        ("<answer>1_0</answer>", None),
        ("<answer>0x1</answer>", None),
        ("<answer>y = 5</answer>", None),
        ("<answer>١٢</answer>", None),
        ("<answer>\uff11\uff12</answer>", None),
        ("<answer>²</answer>", None),
        ("<answer>\u00a012</answer>", None),
        ("<answer>12", None),
        ("12</answer>", None),
        ("</answer>12<answer>", None),
        ("<ANSWER>12</ANSWER>", None),
        ("12", None),
        ("", None),
    ],
)
def test_what_counts_as_one_integer(text, numbers):
    assert parse_answer(text, 1, must_end_there=False) == numbers


@pytest.mark.parametrize(
    ("content", "numbers"),
    [("12, 13", (12, 13)), ("12,13", (12, 13)), (" -1 ,\n0 ", (-1, 0))]
    + [(content, None) for content in ("12", "12,", ",13", "1,2,3", "12;13", "12 13", "1,,2", "(1, 2)")],
)
def test_what_counts_as_two_integers(content, numbers):
    assert parse_answer(f"<answer>{content}</answer>", 2, must_end_there=True) == numbers


@given(st.lists(st.integers(-(10**12) + 1, 10**12 - 1), min_size=1, max_size=17))
def test_a_block_of_integers_is_read_back_whatever_their_number(numbers):
    text = "so " + answer_block(", ".join(map(str, numbers)))
    assert parse_answer(text, len(numbers), must_end_there=True) == tuple(numbers)
    assert parse_answer(text, len(numbers) + 1, must_end_there=True) is None


def test_parsing_a_long_hostile_text_is_quick():
    assert parse_answer("<answer>" * 200_000, 1, must_end_there=False) is None
    assert parse_answer("<answer>" + "," * 1_000_000 + "</answer>", 2, must_end_there=False) is None


@pytest.mark.parametrize("after", ["", " ", "\n"])
def test_white_space_may_follow_an_answer(after):
    assert parse_answer(f"<answer>3</answer>{after}", 1, must_end_there=True) == (3,)


@pytest.mark.parametrize("after", ["x", "<answer>", "</answer>", " \n.", "<|im_end|>"])
def test_text_after_an_answer_makes_it_unparsable_where_it_must_end(after):
    assert parse_answer(f"<answer>3</answer>{after}", 1, must_end_there=True) is None
    assert parse_answer(f"<answer>3</answer>{after}", 1, must_end_there=False) == (3,)
