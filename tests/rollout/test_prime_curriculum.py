"""Ranges that widen as training goes on."""

import random

import pytest
from prime_reference import answer, everything, judged, make_prime, numbers_of

from shared.episodes import Role, Task, Verdict

ENV = make_prime(5, 31, curriculum=((10, 13), (20, 23)))
LARGEST = {0: 13, 9: 13, 10: 23, 19: 23, 20: 31, 10**9: 31}


def prime_of(problem):
    return int(problem.answer) if problem.task is Task.INDUCTION else numbers_of(problem)[1]


def test_stages_start_at_the_curriculums_batches():
    assert ENV.stages == (0, 10, 20)
    assert make_prime().stages == (0,)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("proposal", ["partial", "full"])
def test_a_prime_beyond_the_stage_is_invalid_before_and_valid_after(task, proposal):
    env = make_prime(5, 31, curriculum=((10, 13), (20, 23)), proposal=proposal)
    for problem in everything(env, task):
        p, numbers = prime_of(problem), numbers_of(problem)
        if proposal == "full":
            x, y = numbers if task is Task.INDUCTION else (numbers[0], int(problem.answer))
            numbers = (y, x, p) if task is Task.ABDUCTION else (x, y, p)
        for batch, largest in LARGEST.items():
            expected = Verdict.VALID if p <= largest else Verdict.INVALID
            assert judged(env, task, *numbers, batch=batch) is expected


@pytest.mark.parametrize("prompts", ["short", "instruct"])
@pytest.mark.parametrize("task", Task)
def test_prompts_state_the_stages_range(task, prompts):
    env = make_prime(5, 31, curriculum=((10, 13), (20, 23)), prompts=prompts)
    for batch, largest in LARGEST.items():
        assert f"from 5 to {largest}" in env.proposer_prompt(task, [], batch=batch)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_seeds_stay_within_the_stage_and_use_all_of_it(task, held_out):
    env = make_prime(5, 31, curriculum=((10, 13), (20, 23)), held_out=held_out)
    for batch, largest in LARGEST.items():
        seeds = env.seed_problems(task, 10**6, random.Random(0), batch=batch)
        assert {p.content for p in seeds} == {p.content for p in everything(env, task) if prime_of(p) <= largest}


@pytest.mark.parametrize("task", Task)
def test_demonstrations_show_nothing_beyond_the_first_stage(task):
    rng = random.Random(0)
    first = make_prime(5, 13)
    asked = {ENV.solver_prompt(problem) for problem in everything(first, task)}
    for _ in range(200):
        proposal = ENV.demonstration(Role.PROPOSER, task, rng)
        assert "from 5 to 13" in proposal.prompt
        assert first.judge_proposal(task, proposal.response, batch=0).verdict is Verdict.VALID
        attempt = ENV.demonstration(Role.SOLVER, task, rng)
        assert attempt.prompt in asked
        assert int(attempt.response.removeprefix("<answer>").removesuffix("</answer>")) <= 13


def test_evaluation_and_grading_cover_the_whole_range_from_the_start():
    for task in Task:
        problems = everything(ENV, task)
        assert [p.content for p in problems] == [p.content for p in everything(make_prime(5, 31), task)]
        assert all(ENV.grade(p, answer(int(p.answer))) is Verdict.CORRECT for p in problems)
