import pytest

from launch.cli import main
from launch.command_words import split_overrides


def test_overrides_may_stand_anywhere():
    words = ["eval", "--run.seed", "3", "runs/mine/model", "--learner.lr=2", "--json", "a.json", "--model.dtype"]
    assert split_overrides(words) == (
        ["eval", "runs/mine/model", "--json", "a.json"],
        ["--run.seed", "3", "--learner.lr=2", "--model.dtype"],
    )


def test_an_override_without_a_value_does_not_take_the_next_option_for_one():
    words = ["train", "--run.steps", "--resume", "--run.seed", "-1", "--learner.lr", "--model.dtype=float32"]
    assert split_overrides(words) == (
        ["train", "--resume"],
        ["--run.steps", "--run.seed", "-1", "--learner.lr", "--model.dtype=float32"],
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --steps 3", "primezero train: error: unrecognized arguments: --steps 3; do you mean --run.steps?"),
        ("train --confg a.toml", "do you mean --config?"),
        ("train --model models/tiny", "do you mean --model.path?"),
        ("train run.steps=3", "do you mean --run.steps?"),
        ("train --time-limit-s=3", "do you mean --run.time_limit_s?"),
        ("train --foo", "; `primezero train --help` lists what there is"),
        ("inspect runs/mine --steps 3", "do you mean --step?"),
        ("report runs/mine --lr 3", "; `primezero report --help` lists what there is"),
        ("bench wire --foo", "; `primezero bench --help` lists what there is"),
    ],
)
def test_an_unknown_word_is_a_usage_error_of_its_command_that_says_what_resembles_it(words, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words.split())
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith(f"{said}\n")
