"""Seeds, evaluation sets and demonstrations: which problems are given out."""

import hashlib
import random
import time
from itertools import product

import pytest
from prime_reference import answer, everything, make_prime, numbers_of

from shared.episodes import Role, Task, Verdict

SMALL = make_prime()
LARGE = make_prime(5, 617)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("settings", [{}, {"held_out": 0.1}, {"induction_pairs": 2}, {"swapped_is_copy": True}])
def test_seed_problems_are_distinct_valid_and_reproducible(task, settings):
    env = make_prime(5, 617, **settings)
    seeds = env.seed_problems(task, 500, random.Random(1), batch=0)
    assert len({p.key for p in seeds}) == 500
    for problem in seeds:
        assert env.judge_proposal(task, f"<answer>{problem.content}</answer>", batch=0).problem == problem
    assert seeds == env.seed_problems(task, 500, random.Random(1), batch=0)
    assert seeds != env.seed_problems(task, 500, random.Random(2), batch=0)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("settings", [{}, {"held_out": 0.2}, {"induction_pairs": 2}])
def test_seeds_are_as_many_as_exist(task, settings):
    env = make_prime(**settings)
    assert {p.key for p in env.seed_problems(task, 10**6, random.Random(1), batch=0)} == {
        p.key for p in everything(env, task)
    }
    assert env.seed_problems(task, 0, random.Random(1), batch=0) == []


@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_seeds_are_drawn_evenly_from_all_problems(held_out):
    env, rng = make_prime(held_out=held_out), random.Random(3)
    problems = everything(env, Task.DEDUCTION)
    counts = dict.fromkeys((p.key for p in problems), 0)
    for _ in range(2000):
        for seed in env.seed_problems(Task.DEDUCTION, 3, rng, batch=0):
            counts[seed.key] += 1
    expected = 6000 / len(problems)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_problems_are_distinct_reproducible_and_cover_every_band(task, held_out):
    env = make_prime(5, 617, held_out=0.2)
    problems = env.evaluation_problems(task, 512, seed=4, held_out=held_out)
    assert len({p.key for p in problems}) == 512
    assert problems == env.evaluation_problems(task, 512, seed=4, held_out=held_out)
    assert problems != env.evaluation_problems(task, 512, seed=5, held_out=held_out)
    primes = [int(p.answer) if task is Task.INDUCTION else numbers_of(p)[1] for p in problems]
    assert primes == sorted(primes)
    assert {p * 6 // 618 for p in primes} == set(range(6))


def test_a_small_universe_is_evaluated_whole_in_one_order():
    assert SMALL.evaluation_problems(Task.DEDUCTION, 512, seed=0) == SMALL.evaluation_problems(
        Task.DEDUCTION, 35, seed=9
    )


def test_evaluation_sets_do_not_depend_on_what_counts_as_a_copy():
    strict = make_prime(5, 617, swapped_is_copy=True)
    for task in Task:
        asked = [[p.content for p in env.evaluation_problems(task, 64, seed=1)] for env in (LARGE, strict)]
        assert asked[0] == asked[1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"held_out": 0.05, "swapped_is_copy": True},
        {"induction_pairs": 4, "induction_held_out_pairs": 8, "held_out": 0.01},
    ],
)
def test_the_largest_configurable_range_works_quickly(settings):
    started = time.process_time()
    env = make_prime(2, 100_000, **settings)
    for task, held_out in product(Task, {False, bool(settings.get("held_out"))}):
        problems = env.evaluation_problems(task, 16, seed=0, held_out=held_out)
        assert len({p.content for p in problems}) == 16
        assert all(env.grade(p, answer(int(p.answer))) is Verdict.CORRECT for p in problems)
    for task in Task:
        for each in env.seed_problems(task, 5, random.Random(0), batch=0):
            assert env.judge_proposal(task, f"<answer>{each.content}</answer>", batch=0).problem == each
    assert time.process_time() - started < 200  # five on an idle machine; pair by pair it would be hours


@pytest.mark.parametrize("prompts", ["short", "instruct"])
@pytest.mark.parametrize("task", Task)
def test_demonstrations_parse_and_are_right_for_primes_up_to_5(task, prompts):
    env, rng = make_prime(prompts=prompts), random.Random(0)
    asked_by = {env.solver_prompt(problem): problem for problem in everything(env, task)}
    for _ in range(300):
        proposal = env.demonstration(Role.PROPOSER, task, rng)
        proposed = env.judge_proposal(task, proposal.response, batch=0)
        assert proposed.verdict is Verdict.VALID
        numbers = proposed.problem.content.replace(",", ", ")
        assert f" {numbers};" not in proposal.prompt
        assert f">{numbers}<" not in proposal.prompt
        attempt = env.demonstration(Role.SOLVER, task, rng)
        asked = asked_by[attempt.prompt]
        verdict = env.grade(asked, attempt.response)
        p = int(asked.answer) if task is Task.INDUCTION else numbers_of(asked)[1]
        assert verdict is (Verdict.CORRECT if p <= 5 else verdict)
        assert verdict is not Verdict.UNPARSABLE


def test_demonstrations_guess_above_5():
    rng, verdicts = random.Random(0), []
    asked_by = {SMALL.solver_prompt(problem): problem for problem in everything(SMALL, Task.DEDUCTION)}
    for _ in range(300):
        attempt = SMALL.demonstration(Role.SOLVER, Task.DEDUCTION, rng)
        verdicts.append(SMALL.grade(asked_by[attempt.prompt], attempt.response))
    assert {Verdict.CORRECT, Verdict.WRONG} == set(verdicts)


def test_demonstrations_work_where_only_one_problem_exists():
    env = make_prime(3, 3)
    for role, task in product(Role, Task):
        assert env.demonstration(role, task, random.Random(0)).response.startswith("<answer>")


def test_what_a_seed_draws_on_the_tiny_universe_is_pinned():
    # The tiny model is made from these rows: another digest means another model for the same seed.
    env, rng, digest = make_prime(text_after_answer="unparsable"), random.Random("golden"), hashlib.sha256()
    for _, task, role in product(range(200), Task, Role):
        row = env.demonstration(role, task, rng)
        digest.update(f"{row.prompt}\n{row.response}\n".encode())
    for task in Task:
        for problem in env.seed_problems(task, 24, rng, batch=0) + env.evaluation_problems(task, 12, seed=3):
            digest.update(f"{problem.content}\n".encode())
    assert digest.hexdigest() == "9b8e5e195a3296aca6497448b4898b1f5fe40e3892b7928547d0a7aa2dad7e2b"
