import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.environment import make_environment
from rollout.prime_inversion import PrimeInversion, parse_answer
from shared.config import EnvironmentConfig
from shared.episodes import Problem, Role, Task, Verdict
from shared.errors import ConfigError

SMALL = PrimeInversion(EnvironmentConfig())
LARGE = PrimeInversion(EnvironmentConfig(min_prime=5, max_prime=617))
PRIMES_TO_101 = [n for n in range(2, 102) if all(n % d for d in range(2, n))]
OPEN, CLOSE = "<answer>", "</answer>"

ANSWER_LIKE = st.lists(
    st.one_of(st.sampled_from([OPEN, CLOSE, ",", " ", "-", "\n", "12", "١٢", "<", "²"]), st.text(max_size=5)),
    max_size=12,
).map("".join)


def answer(*numbers):
    return OPEN + ", ".join(map(str, numbers)) + CLOSE


def problem(task, first, second):
    return Problem(task, f"{first},{second}", f"{first},{second}")


def everything(env, task):
    return env.evaluation_problems(task, 10**6, seed=0)


# Induction lacks the 30th pair, 1 · 1, which every prime would answer.
@pytest.mark.parametrize(("task", "count"), [(Task.DEDUCTION, 35), (Task.ABDUCTION, 35), (Task.INDUCTION, 29)])
def test_the_number_of_problems_with_primes_up_to_13(task, count):
    assert len({p.key for p in everything(SMALL, task)}) == count


@pytest.mark.parametrize("bounds", [(2, 13), (5, 23), (2, 101)])
def test_proposals_are_valid_exactly_when_brute_force_finds_an_answer(bounds):
    low, high = bounds
    env = PrimeInversion(EnvironmentConfig(min_prime=low, max_prime=high))
    primes = [p for p in PRIMES_TO_101 if low <= p <= high]
    triples = [(x, y, p) for p in primes for x, y in product(range(1, p), repeat=2) if x * y % p == 1]
    expected = {
        Task.DEDUCTION: {(x, p) for x, _, p in triples},
        Task.ABDUCTION: {(y, p) for _, y, p in triples},
        Task.INDUCTION: {(x, y) for x, y, _ in triples if x * y != 1},
    }
    for task in Task:
        proposed = product(range(-2, high + 3), repeat=2)
        verdicts = {pair: env.judge_proposal(task, answer(*pair)) for pair in proposed}
        assert {pair for pair, p in verdicts.items() if p.verdict is Verdict.VALID} == expected[task]
        assert {p.verdict for p in verdicts.values()} == {Verdict.VALID, Verdict.INVALID}
        assert all((p.problem is not None) == (p.verdict is Verdict.VALID) for p in verdicts.values())
        assert {p.content for p in everything(env, task)} == {f"{a},{b}" for a, b in expected[task]}


def test_solver_answers_are_graded_as_brute_force_does_for_every_prime_up_to_101():
    env = PrimeInversion(EnvironmentConfig(min_prime=2, max_prime=101))
    for p in PRIMES_TO_101:
        for x in range(1, p):
            for guess in range(-1, p + 2):
                expected = Verdict.CORRECT if x * guess % p == 1 else Verdict.WRONG
                assert env.grade(problem(Task.DEDUCTION, x, p), answer(guess)) is expected
                assert env.grade(problem(Task.ABDUCTION, x, p), answer(guess)) is expected


def test_induction_answers_are_graded_as_brute_force_does_for_every_pair_up_to_101():
    env = PrimeInversion(EnvironmentConfig(min_prime=2, max_prime=101))
    for induction in everything(env, Task.INDUCTION):
        x, y = map(int, induction.content.split(","))
        accepted = {p for p in PRIMES_TO_101 if p > max(x, y) and (x * y - 1) % p == 0}
        assert len(accepted) == 1
        correct = {g for g in range(-1, 104) if env.grade(induction, answer(g)) is Verdict.CORRECT}
        assert correct == accepted


def test_a_product_of_one_is_refused_for_induction_only():
    assert SMALL.judge_proposal(Task.INDUCTION, answer(1, 1)).verdict is Verdict.INVALID
    assert SMALL.judge_proposal(Task.DEDUCTION, answer(1, 13)).verdict is Verdict.VALID


def test_an_induction_prime_below_a_shown_number_is_wrong():
    # 8 · 5 = 39 + 1: 3 divides 39 too, but is not above 8.
    assert SMALL.grade(problem(Task.INDUCTION, 8, 5), answer(13)) is Verdict.CORRECT
    assert SMALL.grade(problem(Task.INDUCTION, 8, 5), answer(3)) is Verdict.WRONG
    assert SMALL.grade(problem(Task.INDUCTION, 8, 5), answer(39)) is Verdict.WRONG


@pytest.mark.parametrize("guess", [5, 5 + 7 * 10**10, 5 - 7, 5 - 7 * 10**9])
def test_every_congruent_integer_is_accepted(guess):
    assert SMALL.grade(problem(Task.DEDUCTION, 3, 7), answer(guess)) is Verdict.CORRECT


def test_zero_is_an_ordinary_wrong_answer():
    for task in Task:
        assert SMALL.grade(everything(SMALL, task)[-1], answer(0)) is Verdict.WRONG
        assert SMALL.judge_proposal(task, answer(0, 0)).verdict is Verdict.INVALID


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


def test_parsing_a_long_hostile_text_is_quick():
    assert parse_answer("<answer>" * 200_000, 1, must_end_there=False) is None
    assert parse_answer("<answer>" + "," * 1_000_000 + "</answer>", 2, must_end_there=False) is None


@given(st.one_of(st.text(), ANSWER_LIKE, ANSWER_LIKE.map(lambda text: OPEN + text + CLOSE)))
def test_no_text_makes_judging_raise(text):
    for task in Task:
        assert SMALL.judge_proposal(task, text).verdict in (Verdict.VALID, Verdict.INVALID, Verdict.UNPARSABLE)
        graded = SMALL.grade(everything(SMALL, task)[5], text)
        assert graded in (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE)


@given(st.data(), st.text().filter(lambda text: "answer>" not in text), st.sampled_from(["", " ", "\n", "\t "]))
def test_every_true_equation_in_the_asked_format_is_accepted(data, reasoning, space):
    p = data.draw(st.sampled_from([p for p in PRIMES_TO_101 if p >= 5]))
    x = data.draw(st.integers(2, p - 1))
    y = pow(x, -1, p)
    for task, stated, hidden in ((Task.DEDUCTION, (x, p), y), (Task.ABDUCTION, (y, p), x), (Task.INDUCTION, (x, y), p)):
        proposal = LARGE.judge_proposal(task, f"{reasoning}<answer>{space}{stated[0]},{space}{stated[1]}</answer>")
        assert proposal.verdict is Verdict.VALID
        assert LARGE.grade(proposal.problem, f"{reasoning}<answer>{space}{hidden}{space}</answer>") is Verdict.CORRECT


@given(st.sampled_from(list(Task)), st.integers(0, 2**32))
def test_a_problem_survives_stating_it_again(task, seed):
    for original in LARGE.seed_problems(task, 3, random.Random(seed)):
        stated = LARGE.judge_proposal(task, f"<answer>{original.content}</answer>")
        assert stated.problem == original


def test_another_spelling_of_the_numbers_is_the_same_problem():
    spellings = ["<answer>3, 7</answer>", "<answer>03,007</answer>", "x <answer>\n3 , 7</answer>"]
    assert {SMALL.judge_proposal(Task.DEDUCTION, text).problem for text in spellings} == {problem(Task.DEDUCTION, 3, 7)}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "3",
        "3,7,1",
        "3, 7",
        "3,7\n",
        "-3,7",
        "03,7",
        "٣,7",
        "3.0,7",
        "3,__import__('os')",
        "9" * 7 + ",7",
        "9" * 10**6,
    ],
)
def test_a_malformed_problem_is_a_clear_value_error(content):
    for use in (SMALL.solver_prompt, lambda p: SMALL.grade(p, answer(1)), lambda p: SMALL.proposer_prompt(p.task, [p])):
        with pytest.raises(ValueError, match=r"malformed deduction problem") as error:
            use(Problem(Task.DEDUCTION, content, content))
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "impossible", [problem(Task.DEDUCTION, 7, 7), problem(Task.ABDUCTION, 3, 9), problem(Task.INDUCTION, 1, 1)]
)
def test_an_impossible_problem_is_a_value_error(impossible):
    with pytest.raises(ValueError, match=r"no \w+ problem for primes in"):
        SMALL.grade(impossible, answer(1))


def test_a_problem_whose_key_is_not_its_own_is_a_value_error():
    with pytest.raises(ValueError, match="malformed"):
        SMALL.solver_prompt(Problem(Task.DEDUCTION, "3,7", "2,7"))


@pytest.mark.parametrize("env", [SMALL, LARGE])
@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("references", [0, 1, 2, 6])
def test_the_proposer_prompts_own_example_is_a_valid_proposal(env, task, references):
    known = env.seed_problems(task, references, random.Random(3))
    prompt = env.proposer_prompt(task, known)
    example = env.judge_proposal(task, prompt)
    assert example.verdict is Verdict.VALID
    assert not known or example.problem == known[0]
    for reference in known:
        assert reference.content.replace(",", ", ") in prompt


@pytest.mark.parametrize("task", Task)
def test_the_solver_prompts_own_example_parses(task):
    for each in everything(SMALL, task):
        assert SMALL.grade(each, SMALL.solver_prompt(each)) in (Verdict.CORRECT, Verdict.WRONG)


def test_prompts_state_the_range_and_the_numbers():
    assert "from 5 to 617" in LARGE.proposer_prompt(Task.DEDUCTION, [])
    assert "with 3 * y = 1 (mod 7)." in SMALL.solver_prompt(problem(Task.DEDUCTION, 3, 7))
    assert "with x * 3 = 1 (mod 7)." in SMALL.solver_prompt(problem(Task.ABDUCTION, 3, 7))
    assert "prime p above both numbers with 3 * 5 = 1 (mod p)." in SMALL.solver_prompt(problem(Task.INDUCTION, 3, 5))


def test_references_of_another_task_are_refused():
    with pytest.raises(ValueError, match="references"):
        SMALL.proposer_prompt(Task.DEDUCTION, [problem(Task.ABDUCTION, 3, 7)])


@pytest.mark.parametrize("task", Task)
def test_seed_problems_are_distinct_valid_and_reproducible(task):
    seeds = LARGE.seed_problems(task, 500, random.Random(1))
    assert len({p.key for p in seeds}) == 500
    assert all(LARGE.judge_proposal(task, f"<answer>{p.content}</answer>").problem == p for p in seeds)
    assert seeds == LARGE.seed_problems(task, 500, random.Random(1))
    assert seeds != LARGE.seed_problems(task, 500, random.Random(2))
    assert {p.key for p in SMALL.seed_problems(task, 10**6, random.Random(1))} == {
        p.key for p in everything(SMALL, task)
    }


@pytest.mark.parametrize("task", Task)
def test_evaluation_problems_are_distinct_reproducible_and_cover_every_band(task):
    problems = LARGE.evaluation_problems(task, 512, seed=4)
    assert len({p.key for p in problems}) == 512
    assert problems == LARGE.evaluation_problems(task, 512, seed=4)
    assert problems != LARGE.evaluation_problems(task, 512, seed=5)
    if task is not Task.INDUCTION:
        bands = [int(p.content.split(",")[1]) * 6 // 618 for p in problems]
        assert set(bands) == set(range(6))
        assert bands == sorted(bands)


def test_a_small_universe_is_evaluated_whole_in_one_order():
    assert SMALL.evaluation_problems(Task.DEDUCTION, 512, seed=0) == SMALL.evaluation_problems(
        Task.DEDUCTION, 35, seed=9
    )


def test_the_largest_configurable_range_works():
    env = PrimeInversion(EnvironmentConfig(min_prime=2, max_prime=100_000))
    for task in Task:
        for each in env.seed_problems(task, 5, random.Random(0)):
            assert env.judge_proposal(task, f"<answer>{each.content}</answer>").problem == each


@pytest.mark.parametrize("task", Task)
def test_demonstrations_parse_and_are_right_for_primes_up_to_5(task):
    rng = random.Random(0)
    for _ in range(300):
        proposal = SMALL.demonstration(Role.PROPOSER, task, rng)
        proposed = SMALL.judge_proposal(task, proposal.response)
        assert proposed.verdict is Verdict.VALID
        numbers = proposed.problem.content.replace(",", ", ")
        assert f" {numbers};" not in proposal.prompt
        assert f">{numbers}<" not in proposal.prompt
        attempt = SMALL.demonstration(Role.SOLVER, task, rng)
        (asked,) = [p for p in everything(SMALL, task) if SMALL.solver_prompt(p) == attempt.prompt]
        verdict = SMALL.grade(asked, attempt.response)
        easy = (
            any(SMALL.grade(asked, answer(p)) is Verdict.CORRECT for p in (3, 5))
            if task is Task.INDUCTION
            else (int(asked.content.split(",")[1]) <= 5)
        )
        assert verdict is not Verdict.UNPARSABLE
        assert verdict is Verdict.CORRECT or not easy


def test_demonstrations_work_where_only_one_problem_exists():
    env = PrimeInversion(EnvironmentConfig(min_prime=3, max_prime=3))
    for role, task in product(Role, Task):
        assert env.demonstration(role, task, random.Random(0)).response.startswith(OPEN)


def test_a_range_without_induction_problems_is_a_config_error():
    with pytest.raises(ConfigError, match="induction"):
        make_environment(EnvironmentConfig(min_prime=2, max_prime=2))


def test_the_fingerprint_tells_settings_apart():
    assert make_environment(EnvironmentConfig()).fingerprint == SMALL.fingerprint
    assert SMALL.fingerprint != LARGE.fingerprint


@pytest.mark.parametrize("after", ["", " ", "\n"])
def test_white_space_may_follow_an_answer(after):
    assert parse_answer(f"<answer>3</answer>{after}", 1, must_end_there=True) == (3,)


@pytest.mark.parametrize("after", ["x", "<answer>", "</answer>", " \n.", "<|im_end|>"])
def test_text_after_an_answer_makes_it_unparsable_where_it_must_end(after):
    assert parse_answer(f"<answer>3</answer>{after}", 1, must_end_there=True) is None
    assert parse_answer(f"<answer>3</answer>{after}", 1, must_end_there=False) == (3,)


def test_text_after_an_answer_is_a_setting_of_the_environment():
    text = "<answer>4</answer> or so"
    for setting, verdict in (("allowed", Verdict.CORRECT), ("unparsable", Verdict.UNPARSABLE)):
        env = PrimeInversion(EnvironmentConfig(text_after_answer=setting))
        (problem,) = [p for p in env.evaluation_problems(Task.DEDUCTION, 99, 0) if p.content == "2,7"]
        assert env.grade(problem, text) is verdict
