"""Residue classes that are never trained on."""

import hashlib
import random
import re
from itertools import product

import pytest
from prime_reference import answer, everything, judged, make_prime, numbers_of, residue_class, triples

from shared.episodes import Role, Task, Verdict

SHARE = 0.2
ENV = make_prime(2, 101, held_out=SHARE)


def classes(env, *, held_out, task=Task.DEDUCTION):
    return {c for problem in everything(env, task, held_out=held_out) for c in residue_class(problem)}


HELD_OUT = classes(ENV, held_out=True)


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("task", Task)
def test_trainable_and_held_out_problems_partition_the_universe(task, pairs):
    low, high = 2, 23
    env = make_prime(low, high, held_out=SHARE, induction_pairs=pairs)
    trainable, held_out = ([p.content for p in everything(env, task, held_out=held)] for held in (False, True))
    assert not set(trainable) & set(held_out)
    whole = make_prime(low, high, induction_pairs=pairs)
    assert sorted(trainable + held_out) == sorted(p.content for p in everything(whole, task))
    assert trainable
    assert held_out


def test_without_a_share_nothing_is_held_out():
    assert all(everything(make_prime(5, 617), task, held_out=True) == [] for task in Task)


@pytest.mark.parametrize("proposal", ["partial", "full"])
def test_a_true_equation_is_held_out_in_both_orientations_and_all_tasks_alike(proposal):
    env = make_prime(2, 101, held_out=SHARE, proposal=proposal)
    for x, y, p in triples(2, 101):
        expected = Verdict.HELD_OUT if (p, *sorted((x, y))) in HELD_OUT else Verdict.VALID
        stated = {Task.DEDUCTION: (x, p), Task.ABDUCTION: (y, p), Task.INDUCTION: (x, y)}
        for task, numbers in stated.items():
            numbers = (x, y, p) if proposal == "full" else numbers
            one_times_one = task is Task.INDUCTION and x * y == 1
            assert judged(env, task, *numbers) is (Verdict.INVALID if one_times_one else expected)


def test_an_induction_problem_with_one_held_out_pair_is_held_out():
    env = make_prime(2, 31, held_out=SHARE, induction_pairs=2)
    held = classes(make_prime(2, 31, held_out=SHARE), held_out=True)
    for problem in everything(make_prime(2, 31, induction_pairs=2), Task.INDUCTION):
        expected = Verdict.HELD_OUT if held & set(residue_class(problem)) else Verdict.VALID
        assert judged(env, Task.INDUCTION, *numbers_of(problem)) is expected


def test_only_what_would_otherwise_be_valid_is_held_out():
    p, x, y = max(HELD_OUT)
    env = make_prime(2, 101, held_out=SHARE, curriculum=((5, 7),), proposal="full")
    for task in Task:
        assert judged(env, task, x, y, p, batch=4) is Verdict.INVALID
        assert judged(env, task, x, y, p, batch=5) is Verdict.HELD_OUT
        assert judged(env, task, x, y + 1, p, batch=5) is Verdict.INVALID


def test_the_share_is_close_to_the_configured_one():
    for share in (0.05, 0.1, 0.5):
        env = make_prime(5, 617, held_out=share)
        for task in Task:
            held, kept = (classes(env, held_out=held, task=task) for held in (True, False))
            assert not held & kept
            # Some 16,000 classes: five standard deviations are at most 0.02.
            assert abs(len(held) / len(held | kept) - share) < 5 * (share * (1 - share) / 16_000) ** 0.5


def test_classes_stay_where_they_are_in_another_range_or_curriculum_and_with_a_larger_share():
    others = [make_prime(7, 617, held_out=SHARE), make_prime(2, 101, held_out=SHARE, curriculum=((9, 13),))]
    for env in others:
        assert {c for c in classes(env, held_out=True) if 7 <= c[0] <= 101} == {c for c in HELD_OUT if c[0] >= 7}
    assert classes(make_prime(2, 101, held_out=SHARE + 0.1), held_out=True) > HELD_OUT


def test_every_interpreter_holds_the_same_classes_out():
    for p, low, high in classes(ENV, held_out=True) | classes(ENV, held_out=False):
        place = int(hashlib.sha256(f"held out {p}:{low},{high}".encode()).hexdigest(), 16) / 2**256
        assert (place < SHARE) == ((p, low, high) in HELD_OUT)


@pytest.mark.parametrize("task", Task)
def test_seeds_are_never_held_out(task):
    for seed in range(20):
        for problem in ENV.seed_problems(task, 100, random.Random(seed), batch=0):
            assert not HELD_OUT & set(residue_class(problem))


@pytest.mark.parametrize("prompts", ["short", "instruct"])
@pytest.mark.parametrize("proposal", ["partial", "full"])
@pytest.mark.parametrize("pairs", [1, 2])
def test_no_proposer_prompt_shows_a_held_out_class(prompts, proposal, pairs):
    # At this share the smallest problems, which would be the examples, are held out.
    settings = {"prompts": prompts, "proposal": proposal, "induction_pairs": pairs}
    env = make_prime(2, 31, held_out=0.6, **settings)
    unrestricted = make_prime(2, 31, **settings)
    moved = []
    for task in Task:
        texts = [env.proposer_prompt(task, [], batch=0)]
        moved.append(texts[0] != unrestricted.proposer_prompt(task, [], batch=0))
        rng = random.Random(5)
        texts += [env.demonstration(Role.PROPOSER, task, rng).prompt for _ in range(100)]
        for text in texts:
            example = "<answer>" + text.rsplit("<answer>")[-1]
            others = re.findall(r"(?:\d+, )+\d+(?=[;.]|$)", text.rsplit("like")[-1] if prompts == "short" else text)
            for shown in (example, *(f"<answer>{other}</answer>" for other in others)):
                assert env.judge_proposal(task, shown, batch=0).verdict is Verdict.VALID, shown
        assert any(";" in text for text in texts)
    assert any(moved)


@pytest.mark.parametrize(("role", "task"), list(product(Role, Task)))
def test_no_demonstration_states_a_held_out_class(role, task):
    rng = random.Random(2)
    asked_by = {ENV.solver_prompt(problem): problem for problem in everything(ENV, task)}
    for _ in range(300):
        row = ENV.demonstration(role, task, rng)
        if role is Role.PROPOSER:
            assert ENV.judge_proposal(task, row.response, batch=0).verdict is Verdict.VALID
        else:
            # A KeyError here is a held-out problem: asked_by has all others.
            assert ENV.grade(asked_by[row.prompt], row.response) in (Verdict.CORRECT, Verdict.WRONG)


def test_a_held_out_reference_is_refused_but_a_held_out_problem_is_asked_and_graded():
    for task in Task:
        problem = everything(ENV, task, held_out=True)[0]
        with pytest.raises(ValueError, match="held out"):
            ENV.proposer_prompt(task, [problem], batch=0)
        assert str(numbers_of(problem)[0]) in ENV.solver_prompt(problem)
        assert ENV.grade(problem, answer(int(problem.answer))) is Verdict.CORRECT
