import pytest

from launch.play.asking import Propose, Solve, check_proposal, parse_line, pose
from rollout.environment import make_environment
from shared.config_file import load_config
from shared.episodes import Task, Verdict
from shared.errors import ConfigError

CONFIG = load_config(None, ["--environment.held_out=0.9", "--environment.curriculum=[[5, 7]]"])
TWO_PAIRS = load_config(None, ["--environment.induction_pairs=2"])


@pytest.mark.parametrize(
    ("line", "request_", "task"),
    [
        ("p=101 x=7", Solve(p=(101,), x=(7,)), Task.DEDUCTION),
        ("  y = 29 ,p=101", Solve(p=(101,), y=(29,)), Task.ABDUCTION),
        ("x=3 y=5", Solve(x=(3,), y=(5,)), Task.INDUCTION),
        ("x=3,5 y=5, 3", Solve(x=(3, 5), y=(5, 3)), Task.INDUCTION),
        ("propose induction", Propose(Task.INDUCTION), Task.INDUCTION),
    ],
)
def test_a_line_says_what_is_asked(line, request_, task):
    assert parse_line(line) == request_
    assert parse_line(line).task is task


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("huh", "is not understood"),
        ("p=101 x=seven", "is not understood"),
        ("p=101 x=-7", "is not understood"),
        ("p=101 p=7", "each of p, x and y once"),
        ("propose", "no task ''"),
        ("propose arithmetic", "no task 'arithmetic'"),
        ("p=99999999999 x=1", "at most nine digits"),
    ],
)
def test_what_is_not_understood_is_explained(line, said):
    with pytest.raises(ConfigError, match=said):
        parse_line(line)


@pytest.mark.parametrize("given", [{}, {"p": (7,)}, {"p": (7,), "x": (3,), "y": (5,)}])
def test_two_of_the_three_are_needed(given):
    with pytest.raises(ConfigError, match="give two of p, x and y"):
        pose(CONFIG, Solve(**given))


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (Solve(p=(101,), x=(7,)), "29"),
        (Solve(p=(101,), y=(29,)), "7"),
        (Solve(p=(2,), x=(1,)), "1"),
        (Solve(x=(3,), y=(5,)), "7"),
    ],
)
def test_the_problem_is_that_of_the_numbers_whatever_the_range_and_what_is_held_out(request_, answer):
    posed = pose(CONFIG, request_)
    assert (posed.problem.task, posed.problem.answer) == (request_.task, answer)
    assert posed.environment.grade(posed.problem, f"<answer>{answer}</answer>") is Verdict.CORRECT
    assert posed.environment.grade(posed.problem, "<answer>0</answer>") is Verdict.WRONG


def test_inside_the_range_the_prompt_is_that_of_training():
    posed = pose(CONFIG, Solve(p=(11,), x=(7,)))
    training = make_environment(CONFIG.environment)
    assert posed.environment.solver_prompt(posed.problem) == training.solver_prompt(posed.problem)


def test_any_problem_is_posed_whatever_is_trained_but_proposed_only_what_is():
    config = load_config(None, ["--environment.tasks=['abduction']"])
    assert pose(config, Solve(x=(3,), y=(5,))).problem.task is Task.INDUCTION
    check_proposal(config, Propose(Task.ABDUCTION))
    with pytest.raises(ConfigError, match=r"no deduction problems here: environment\.tasks is abduction"):
        check_proposal(config, Propose(Task.DEDUCTION))


def test_induction_shows_as_many_pairs_as_are_configured():
    assert pose(TWO_PAIRS, Solve(x=(3, 2), y=(5, 4))).problem.answer == "7"
    with pytest.raises(ConfigError, match="takes 2 of x and as many of y"):
        pose(TWO_PAIRS, Solve(x=(3,), y=(5,)))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Solve(p=(100,), x=(7,)), "p=100 x=7: p has to be a prime, and x from 1 to p - 1"),
        (Solve(p=(7,), y=(7,)), "p has to be a prime, and y from 1 to p - 1"),
        (Solve(p=(7,), x=(0,)), "x from 1 to p - 1"),
        (Solve(x=(1,), y=(1,)), "or every prime has"),
        (Solve(x=(6,), y=(20,)), "no prime from 2 to 13"),
        (Solve(p=(7, 11), x=(1,)), "one number of each"),
        (Solve(p=(999983,), x=(1,)), "p: Input should be less than or equal to 100000"),
    ],
)
def test_a_problem_that_there_is_not_is_explained(request_, said):
    with pytest.raises(ConfigError, match=said):
        pose(CONFIG, request_)
