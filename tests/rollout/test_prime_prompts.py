import random
from itertools import product

import pytest
from prime_reference import everything, make_prime, numbers_of

from shared.episodes import Task, Verdict

STYLES = ("short", "instruct")
SHAPES = list(product(STYLES, ("partial", "full"), (1, 2, 8)))


@pytest.mark.parametrize(("prompts", "proposal", "pairs"), SHAPES)
@pytest.mark.parametrize("references", [0, 1, 2, 6])
@pytest.mark.parametrize("task", Task)
def test_a_proposer_prompts_own_example_is_a_valid_proposal(prompts, proposal, pairs, references, task):
    env = make_prime(5, 617, prompts=prompts, proposal=proposal, induction_pairs=pairs)
    known = env.seed_problems(task, references, random.Random(3), batch=0)
    prompt = env.proposer_prompt(task, known, batch=0)
    example = env.judge_proposal(task, prompt, batch=0)
    assert example.verdict is Verdict.VALID
    assert not known or example.problem == known[0]
    for reference in known:
        assert shown_as(reference, proposal) in prompt


def shown_as(problem, proposal):
    numbers, hidden = numbers_of(problem), int(problem.answer)
    if proposal == "full":
        if problem.task is Task.INDUCTION:
            numbers = (*numbers, hidden)
        else:
            x, p = numbers
            numbers = (x, hidden, p) if problem.task is Task.DEDUCTION else (hidden, x, p)
    return ", ".join(map(str, numbers))


@pytest.mark.parametrize(("prompts", "pairs"), list(product(STYLES, (1, 2))))
@pytest.mark.parametrize("task", Task)
def test_a_solver_prompts_own_example_parses_as_one_number_and_shows_the_numbers(prompts, pairs, task):
    env = make_prime(2, 31, prompts=prompts, induction_pairs=pairs, text_after_answer="unparsable")
    for each in env.evaluation_problems(task, 100, seed=0):
        prompt = env.solver_prompt(each)
        told, example, problem = prompt.rpartition("<answer>7</answer>")
        assert env.grade(each, told + example) in (Verdict.CORRECT, Verdict.WRONG)
        assert (problem == "") is (prompts == "short")
        assert all(str(number) in prompt for number in numbers_of(each))


@pytest.mark.parametrize(("proposal", "pairs"), list(product(("partial", "full"), (1, 2))))
@pytest.mark.parametrize("references", [0, 6])
def test_what_proposers_are_told_ends_with_the_format_even_where_nothing_may_follow(proposal, pairs, references):
    env = make_prime(
        5, 617, prompts="instruct", proposal=proposal, induction_pairs=pairs, text_after_answer="unparsable"
    )
    for task in Task:
        known = env.seed_problems(task, references, random.Random(3), batch=0)
        assert env.judge_proposal(task, env.proposer_prompt(task, known, batch=0), batch=0).verdict is Verdict.VALID


def example_problems(**settings):
    env = make_prime(5, 617, **settings)
    stated = {Task.DEDUCTION: "3,7", Task.ABDUCTION: "3,7", Task.INDUCTION: "3,5"}
    return env, {
        task: env.judge_proposal(task, f"<answer>{text}</answer>", batch=0).problem for task, text in stated.items()
    }


@pytest.mark.parametrize(
    ("task", "solver", "proposer"),
    [
        (
            Task.DEDUCTION,
            "Find y with 3 * y = 1 (mod 7). Reason, then answer like <answer>7</answer>",
            "Pose a prime p from 5 to 617 and x below it, to find the inverse y. Give x, p like <answer>3, 7</answer>",
        ),
        (
            Task.ABDUCTION,
            "Find x with x * 3 = 1 (mod 7). Reason, then answer like <answer>7</answer>",
            "Pose a prime p from 5 to 617 and y below it, to find the inverse x. Give y, p like <answer>3, 7</answer>",
        ),
        (
            Task.INDUCTION,
            "Find a prime p above both numbers with 3 * 5 = 1 (mod p). Reason, then answer like <answer>7</answer>",
            "Pose a prime p from 5 to 617 by inverse x and y below it, to find p. Give x, y like <answer>3, 5</answer>",
        ),
    ],
)
def test_the_short_prompts_word_for_word(task, solver, proposer):
    env, problems = example_problems()
    problem = problems[task]
    stated = problem.content.replace(",", ", ")
    assert env.solver_prompt(problem) == solver
    assert env.proposer_prompt(task, [problem], batch=0) == proposer + " but new"
    assert env.proposer_prompt(task, [problem] * 3, batch=0) == proposer + f" but new, not {stated}; {stated}"


def test_short_prompts_of_several_pairs_and_full_proposals():
    env = make_prime(5, 617, proposal="full", induction_pairs=2)
    problem = env.judge_proposal(Task.INDUCTION, "<answer>3, 5, 2, 4, 7</answer>", batch=0).problem
    assert "above all numbers with 2 * 4 = 1, 3 * 5 = 1 (mod p)." in env.solver_prompt(problem)
    assert "Give x1, y1, x2, y2, p like <answer>2, 4, 3, 5, 7<" in env.proposer_prompt(problem.task, [problem], batch=0)
    assert "Give x, y, p like" in env.proposer_prompt(Task.DEDUCTION, [], batch=0)
    assert "to find x." in env.proposer_prompt(Task.ABDUCTION, [], batch=0)


@pytest.mark.parametrize("proposal", ["partial", "full"])
def test_instruct_prompts_state_the_rules(proposal):
    env = make_prime(5, 617, prompts="instruct", proposal=proposal)
    for task in Task:
        prompt = env.proposer_prompt(task, env.seed_problems(task, 6, random.Random(0), batch=0), batch=0)
        for rule in (
            "from 5 to 617",
            "< p",
            "different from each of the known problems below",
            "neither trivial nor impossible",
        ):
            assert rule in prompt
        assert ("1 <= x, y < p and x * y = 1 (mod p)" in prompt) is (proposal == "full" or task is Task.INDUCTION)
        solver = env.solver_prompt(everything(env, task)[-1])
        assert all("<think>" in text and "Think step by step" in text for text in (prompt, solver))
    assert "from 5 to 617, larger than every number shown" in solver


@pytest.mark.parametrize("pairs", [1, 2])
def test_instruct_prompts_differ_at_their_end_alone(pairs):
    env = make_prime(5, 617, prompts="instruct", induction_pairs=pairs)
    for task in Task:
        first, second = env.evaluation_problems(task, 2, seed=0)
        known = env.seed_problems(task, 6, random.Random(0), batch=0)
        solvers = [env.solver_prompt(problem) for problem in (first, second)]
        proposers = [env.proposer_prompt(task, references, batch=0) for references in (known[:3], known[3:])]
        for one, other in (solvers, proposers):
            alike = next(index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
            assert alike > 0.75 * len(one)


def test_only_where_swapped_problems_are_copies_the_proposer_is_told_so():
    for copies in (False, True):
        env = make_prime(prompts="instruct", swapped_is_copy=copies)
        assert ("Exchanging x and y" in env.proposer_prompt(Task.DEDUCTION, [], batch=0)) is copies


@pytest.mark.parametrize("proposal", ["partial", "full"])
@pytest.mark.parametrize("pairs", [1, 2])
def test_instruct_prompts_are_short_enough_for_a_small_model(proposal, pairs):
    env = make_prime(5, 617, prompts="instruct", proposal=proposal, induction_pairs=pairs, swapped_is_copy=True)
    for task in Task:
        known = env.seed_problems(task, 6, random.Random(0), batch=0)
        assert tokens(env.proposer_prompt(task, known, batch=0)) < 450
        assert tokens(env.solver_prompt(known[0])) < 250


def tokens(text):
    """What Qwen's tokenizer makes of it, about: a token for every digit and for 3.5 other characters."""
    digits = sum(character.isdigit() for character in text)
    return digits + (len(text) - digits) / 3.5


def test_references_of_another_task_are_refused():
    env, problems = example_problems()
    with pytest.raises(ValueError, match="references"):
        env.proposer_prompt(Task.DEDUCTION, [problems[Task.ABDUCTION]], batch=0)
