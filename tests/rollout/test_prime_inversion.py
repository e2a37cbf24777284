import random
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prime_reference import PRIMES_TO_101, answer, everything, inductions, judged, make_prime, numbers_of, triples

from rollout.environment import make_environment
from rollout.prime_prompts import ShortPrompts
from shared.config import EnvironmentConfig
from shared.episodes import Problem, Task, Verdict
from shared.errors import ConfigError

SMALL = make_prime()
LARGE = make_prime(5, 617)
cached_environment = cache(make_prime)

ANSWER_LIKE = st.lists(
    st.one_of(
        st.sampled_from(["<answer>", "</answer>", ",", " ", "-", "\n", "12", "3, 5", "١٢", "<", "²"]),
        st.text(max_size=5),
    ),
    max_size=12,
).map("".join)
ANY_TEXT = st.one_of(
    st.text(),
    ANSWER_LIKE,
    ANSWER_LIKE.map(lambda text: f"<answer>{text}</answer>"),
    st.lists(st.integers(-2, 40), min_size=1, max_size=7).map(lambda numbers: answer(*numbers)),
)
SETTINGS = st.fixed_dictionaries(
    {
        "proposal": st.sampled_from(["partial", "full"]),
        "induction_pairs": st.sampled_from([1, 2, 3]),
        "induction_held_out_pairs": st.sampled_from([0, 2]),
        "prompts": st.sampled_from(["instruct", "short"]),
        "held_out": st.sampled_from([0.0, 0.2]),
        "swapped_is_copy": st.booleans(),
        "text_after_answer": st.sampled_from(["allowed", "unparsable"]),
        "curriculum": st.sampled_from([(), ((5, 19), (9, 23))]),
    }
)


def deduction(x, p):
    (found,) = [each for each in everything(SMALL, Task.DEDUCTION) if each.content == f"{x},{p}"]
    return found


def induction(x, y):
    (found,) = [each for each in everything(SMALL, Task.INDUCTION) if each.content == f"{x},{y}"]
    return found


@pytest.mark.parametrize(
    ("task", "content", "key", "family", "hidden"),
    [
        (Task.DEDUCTION, "3,13", "3,13", "13:3,9", "9"),
        (Task.ABDUCTION, "3,13", "3,13", "13:3,9", "9"),
        (Task.INDUCTION, "9,3", "9,3", "13:3,9", "13"),
    ],
)
def test_what_a_problem_consists_of(task, content, key, family, hidden):
    proposal = SMALL.judge_proposal(task, f"<answer>{content}</answer>", batch=0)
    assert proposal.problem == Problem(task, content, key, family, hidden)


# Induction lacks the 30th pair, 1 · 1, which every prime would answer.
@pytest.mark.parametrize(("task", "count"), [(Task.DEDUCTION, 35), (Task.ABDUCTION, 35), (Task.INDUCTION, 29)])
def test_the_number_of_problems_with_primes_up_to_13(task, count):
    assert len({p.key for p in everything(SMALL, task)}) == count


@pytest.mark.parametrize("bounds", [(2, 13), (5, 23), (2, 101)])
def test_partial_proposals_are_valid_exactly_when_brute_force_finds_an_answer(bounds):
    env, known = make_prime(*bounds), triples(*bounds)
    expected = {
        Task.DEDUCTION: {(x, p): y for x, y, p in known},
        Task.ABDUCTION: {(y, p): x for x, y, p in known},
        Task.INDUCTION: {(x, y): p for x, y, p in known if x * y != 1},
    }
    for task, problems in expected.items():
        proposed = product(range(-2, bounds[1] + 3), repeat=2)
        proposals = {pair: env.judge_proposal(task, answer(*pair), batch=0) for pair in proposed}
        valid = {pair: p.problem for pair, p in proposals.items() if p.verdict is Verdict.VALID}
        assert {pair: int(problem.answer) for pair, problem in valid.items()} == problems
        assert {p.verdict for p in proposals.values()} == {Verdict.VALID, Verdict.INVALID}
        assert all(p.problem is None for p in proposals.values() if p.verdict is Verdict.INVALID)
        assert {p.content for p in everything(env, task)} == {f"{a},{b}" for a, b in problems}


@pytest.mark.parametrize("task", Task)
def test_full_proposals_are_valid_exactly_when_the_equation_holds(task):
    env, known = make_prime(2, 101, proposal="full"), set(triples(2, 101))
    near = {(x + dx, y + dy, p + dp) for x, y, p in known for dx, dy, dp in product((-1, 0, 1), (0, 1), (-2, 0, 1))}
    beyond = {(x + p, y, p) for x, y, p in known} | {(x, y - p, p) for x, y, p in known} | {(2, 52, 103), (1, 1, 1)}
    for x, y, p in near | beyond | known:
        holds = (x, y, p) in known and not (task is Task.INDUCTION and x * y == 1)
        assert (judged(env, task, x, y, p) is Verdict.VALID) == holds, (x, y, p)


def test_full_and_partial_proposals_state_the_same_problems():
    full, partial = make_prime(2, 31, proposal="full"), make_prime(2, 31)
    stated = {Task.DEDUCTION: (0, 2), Task.ABDUCTION: (1, 2), Task.INDUCTION: (0, 1)}
    for (task, shown), numbers in product(stated.items(), [t for t in triples(2, 31) if t[0] * t[1] != 1]):
        by_parts = partial.judge_proposal(task, answer(*(numbers[i] for i in shown)), batch=0)
        assert full.judge_proposal(task, answer(*numbers), batch=0).problem == by_parts.problem


def test_solver_answers_are_graded_as_brute_force_does_for_every_prime_up_to_101():
    env = make_prime(2, 101)
    for task in (Task.DEDUCTION, Task.ABDUCTION):
        for problem in everything(env, task):
            x, p = numbers_of(problem)
            for guess in range(-1, p + 2):
                expected = Verdict.CORRECT if x * guess % p == 1 else Verdict.WRONG
                assert env.grade(problem, answer(guess)) is expected
            assert env.grade(problem, answer(int(problem.answer))) is Verdict.CORRECT


def test_induction_answers_are_graded_as_brute_force_does_for_every_pair_up_to_101():
    env = make_prime(2, 101)
    for problem in everything(env, Task.INDUCTION):
        x, y = numbers_of(problem)
        accepted = {p for p in PRIMES_TO_101 if p > max(x, y) and (x * y - 1) % p == 0}
        assert accepted == {int(problem.answer)}
        assert {g for g in range(-1, 104) if env.grade(problem, answer(g)) is Verdict.CORRECT} == accepted


@pytest.mark.parametrize("proposal", ["partial", "full"])
@pytest.mark.parametrize("further", [0, 3])
def test_two_pair_induction_agrees_with_brute_force_up_to_31(proposal, further):
    env = make_prime(2, 31, induction_pairs=2, induction_held_out_pairs=further, proposal=proposal)
    expected = inductions(2, 31, 2)
    problems = everything(env, Task.INDUCTION)
    assert {each.content for each in problems} == {"{},{},{},{}".format(*a, *b) for a, b in expected}
    for problem in problems:
        x1, y1, x2, y2 = numbers_of(problem)
        accepted = expected[(x1, y1), (x2, y2)]
        assert accepted == {int(problem.answer)}
        assert {g for g in range(33) if env.grade(problem, answer(g)) is Verdict.CORRECT} == accepted
        stated = [int(problem.answer)] if proposal == "full" else []
        for order in ((x1, y1, x2, y2), (x2, y2, x1, y1)):
            assert env.judge_proposal(Task.INDUCTION, answer(*order, *stated), batch=0).problem == problem


def test_two_pairs_that_share_no_prime_repeat_or_are_one_times_one_are_invalid():
    env = make_prime(2, 101, induction_pairs=2)
    assert judged(env, Task.INDUCTION, 2, 4, 3, 5) is Verdict.VALID
    assert judged(env, Task.INDUCTION, 2, 4, 3, 9) is Verdict.INVALID
    assert judged(env, Task.INDUCTION, 2, 4, 2, 4) is Verdict.INVALID
    assert judged(env, Task.INDUCTION, 2, 4, 1, 1) is Verdict.INVALID
    assert judged(env, Task.INDUCTION, 2, 4) is Verdict.UNPARSABLE
    random_pairs = random.Random(0)
    for _ in range(5000):
        a, b = (tuple(random_pairs.randrange(1, 12) for _ in range(2)) for _ in range(2))
        true = [p for p in PRIMES_TO_101 if p > max(a + b) and a[0] * a[1] % p == 1 and b[0] * b[1] % p == 1]
        good = true and a != b and (1, 1) not in (a, b)
        assert (judged(env, Task.INDUCTION, *a, *b) is Verdict.VALID) == bool(good), (a, b)


def test_a_full_induction_proposal_must_state_an_accepted_prime():
    env = make_prime(2, 13, proposal="full")
    assert judged(env, Task.INDUCTION, 8, 5, 13) is Verdict.VALID
    assert judged(env, Task.INDUCTION, 8, 5, 3) is Verdict.INVALID
    assert judged(env, Task.INDUCTION, 8, 5, 11) is Verdict.INVALID
    assert judged(env, Task.INDUCTION, 8, 5) is Verdict.UNPARSABLE


def test_a_product_of_one_is_refused_for_induction_only():
    assert judged(SMALL, Task.INDUCTION, 1, 1) is Verdict.INVALID
    assert judged(SMALL, Task.DEDUCTION, 1, 13) is Verdict.VALID
    full = make_prime(proposal="full")
    assert judged(full, Task.INDUCTION, 1, 1, 13) is Verdict.INVALID
    assert judged(full, Task.ABDUCTION, 1, 1, 13) is Verdict.VALID


def test_an_induction_prime_below_a_shown_number_is_wrong():
    # 8 · 5 = 39 + 1: 3 divides 39 too, but is not above 8.
    assert SMALL.grade(induction(8, 5), answer(13)) is Verdict.CORRECT
    assert SMALL.grade(induction(8, 5), answer(3)) is Verdict.WRONG
    assert SMALL.grade(induction(8, 5), answer(39)) is Verdict.WRONG


@pytest.mark.parametrize("guess", [5, 5 + 7 * 10**10, 5 - 7, 5 - 7 * 10**9])
def test_every_congruent_integer_is_accepted(guess):
    assert SMALL.grade(deduction(3, 7), answer(guess)) is Verdict.CORRECT


def test_zero_is_an_ordinary_wrong_answer():
    for task in Task:
        assert SMALL.grade(everything(SMALL, task)[-1], answer(0)) is Verdict.WRONG
        assert judged(SMALL, task, 0, 0) is Verdict.INVALID


@settings(deadline=None)  # the first example of each setting makes an environment
@given(SETTINGS, ANY_TEXT)
def test_no_text_makes_judging_raise_under_any_setting(setting, text):
    env = cached_environment(2, 31, **setting)
    judgements = {Verdict.VALID, Verdict.INVALID, Verdict.UNPARSABLE}
    if setting["held_out"]:
        judgements.add(Verdict.HELD_OUT)
    for task in Task:
        assert env.judge_proposal(task, text, batch=7).verdict in judgements
        (problem,) = env.seed_problems(task, 1, random.Random(text), batch=0)
        assert env.grade(problem, text) in (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE)


@settings(deadline=None)
@given(
    SETTINGS, st.data(), st.text().filter(lambda text: "answer>" not in text), st.sampled_from(["", " ", "\n", "\t "])
)
def test_every_true_equation_in_the_asked_format_is_accepted(setting, data, reasoning, space):
    env = cached_environment(2, 101, **setting | {"held_out": 0.0})
    p = data.draw(st.sampled_from([p for p in PRIMES_TO_101 if p >= 7]))
    count = setting["induction_pairs"]
    xs = data.draw(st.lists(st.integers(2, p - 1), min_size=count, max_size=count, unique=True))
    pairs = [(x, pow(x, -1, p)) for x in xs]
    (x, y), flat = pairs[0], [n for pair in pairs for n in pair]
    full = setting["proposal"] == "full"
    for task, stated, hidden in (
        (Task.DEDUCTION, [x, y, p] if full else [x, p], y),
        (Task.ABDUCTION, [x, y, p] if full else [y, p], x),
        (Task.INDUCTION, [*flat, p] if full else flat, p),
    ):
        content = f",{space}".join(map(str, stated))
        proposal = env.judge_proposal(task, f"{reasoning}<answer>{space}{content}</answer>", batch=10)
        assert proposal.verdict is Verdict.VALID
        assert env.grade(proposal.problem, f"{reasoning}<answer>{space}{hidden}{space}</answer>") is Verdict.CORRECT


def test_another_spelling_of_the_numbers_is_the_same_problem():
    spellings = ["<answer>3, 7</answer>", "<answer>03,007</answer>", "x <answer>\n3 , 7</answer>"]
    problems = {SMALL.judge_proposal(Task.DEDUCTION, text, batch=0).problem for text in spellings}
    assert problems == {deduction(3, 7)}


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
        "1," * 10**6,
    ],
)
def test_a_malformed_problem_is_a_clear_value_error(content):
    for use in (
        SMALL.solver_prompt,
        SMALL.slices,
        lambda p: SMALL.baselines([p]),
        lambda p: SMALL.grade(p, answer(1)),
        lambda p: SMALL.proposer_prompt(p.task, [p], batch=0),
    ):
        with pytest.raises(ValueError, match=r"malformed deduction problem") as error:
            use(Problem(Task.DEDUCTION, content, content, "7:3,5", "5"))
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("task", "content"), [(Task.DEDUCTION, "7,7"), (Task.ABDUCTION, "3,9"), (Task.INDUCTION, "1,1")]
)
def test_an_impossible_problem_is_a_value_error(task, content):
    with pytest.raises(ValueError, match=r"no \w+ problem for primes in"):
        SMALL.grade(Problem(task, content, content, "7:3,5", "5"), answer(1))


@pytest.mark.parametrize(
    "wrong",
    [{"key": "2,7"}, {"family": "7:5,3"}, {"answer": "4"}, {"answer": "5" * 1000}, {"family": ""}, {"content": "5,7"}],
)
def test_a_problem_with_a_field_that_is_not_its_own_is_a_short_value_error(wrong):
    own = {"content": "3,7", "key": "3,7", "family": "7:3,5", "answer": "5"}
    SMALL.solver_prompt(Problem(Task.DEDUCTION, **own))
    with pytest.raises(ValueError, match="malformed") as error:
        SMALL.solver_prompt(Problem(Task.DEDUCTION, **own | wrong))
    assert len(str(error.value)) < 250


def test_a_problem_of_several_pairs_has_them_in_ascending_order():
    env = make_prime(induction_pairs=2)
    own = {"content": "2,4,3,5", "key": "2,4,3,5", "family": "7:2,4;3,5", "answer": "7"}
    env.solver_prompt(Problem(Task.INDUCTION, **own))
    with pytest.raises(ValueError, match="malformed"):
        env.solver_prompt(Problem(Task.INDUCTION, **own | {"content": "3,5,2,4", "key": "3,5,2,4"}))


@pytest.mark.parametrize("swapped_is_copy", [False, True])
@pytest.mark.parametrize("pairs", [1, 2])
def test_swapped_problems_are_of_one_family_and_copies_only_where_configured(swapped_is_copy, pairs):
    env = make_prime(2, 23, swapped_is_copy=swapped_is_copy, induction_pairs=pairs)
    p, xs = 23, [5, 7][:pairs]
    pairs = [(x, pow(x, -1, p)) for x in xs]
    both = {
        Task.DEDUCTION: [(x, p) for x in pairs[0]],
        Task.ABDUCTION: [(x, p) for x in pairs[0]],
        Task.INDUCTION: [sum(pairs, ()), sum([*pairs[1:], pairs[0][::-1]], ())],
    }
    for task, stated in both.items():
        one, other = (env.judge_proposal(task, answer(*numbers), batch=0).problem for numbers in stated)
        assert one.content != other.content
        assert one.family == other.family
        assert (one.key == other.key) is swapped_is_copy
        families = {each.family for each in everything(env, task)}
        seeds = env.seed_problems(task, 10**6, random.Random(0), batch=0)
        assert len({each.key for each in seeds}) == len(seeds)
        assert len(seeds) == (len(families) if swapped_is_copy else len(everything(env, task)))


def test_text_after_an_answer_is_a_setting_of_the_environment():
    text = "<answer>4</answer> or so"
    for setting, verdict in (("allowed", Verdict.CORRECT), ("unparsable", Verdict.UNPARSABLE)):
        env = make_prime(text_after_answer=setting)
        assert env.grade(deduction(2, 7), text) is verdict


def test_problems_that_are_their_own_inverse_are_reported_apart():
    for task in Task:
        for problem in everything(SMALL, task):
            numbers = numbers_of(problem)
            x, y = numbers if task is Task.INDUCTION else (numbers[0], int(problem.answer))
            assert SMALL.slices(problem) == (("self-inverse",) if x == y else ())
    two = make_prime(induction_pairs=2)
    slices = {problem.content: two.slices(problem) for problem in everything(two, Task.INDUCTION)}
    assert slices["2,4,6,6"] == ("self-inverse",)
    assert slices["2,4,3,5"] == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"high": 2}, "no induction problem to train on"),
        ({"low": 3, "high": 5, "induction_pairs": 4}, "no induction problem to train on"),
        ({"low": 8, "curriculum": ((4, 9),)}, "no deduction problem to train on"),
        ({"curriculum": ((4, 2),)}, "no induction problem to train on"),
        ({"held_out": 0.9999}, r"no \w+ problem to train on"),
    ],
)
def test_settings_that_leave_a_task_without_problems_are_a_config_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_prime(**settings)


def test_the_fingerprint_covers_every_setting():
    base = EnvironmentConfig(min_prime=5, max_prime=31, held_out=0.2, induction_pairs=2, prompts="short")
    changes = {
        "tasks": ("abduction",),
        "min_prime": 7,
        "max_prime": 29,
        "curriculum": ((5, 19),),
        "held_out": 0.3,
        "induction_pairs": 1,
        "induction_held_out_pairs": 1,
        "prompts": "instruct",
        "proposal": "full",
        "swapped_is_copy": True,
        "text_after_answer": "unparsable",
        "evaluation_problems_per_task": 7,
    }
    assert set(changes) == set(EnvironmentConfig.model_fields) - {"name"}
    fingerprints = {
        make_environment(base.model_copy(update={key: value})).fingerprint for key, value in changes.items()
    }
    assert make_environment(base).fingerprint not in fingerprints
    assert len(fingerprints) == len(changes)
    assert make_environment(base).fingerprint == make_environment(base.model_copy()).fingerprint


def test_the_fingerprint_covers_the_prompts_of_both_roles_with_and_without_references(monkeypatch):
    before = make_prime().fingerprint
    changed = set()
    for role, kind in (("solver", None), ("proposer", 0), ("proposer", 1), ("proposer", 2)):
        original = getattr(ShortPrompts, role)

        def reworded(*args, original=original, kind=kind):
            # The proposer's references are the argument before the last.
            return original(*args) + ("!" if kind is None or len(args[-2]) == kind else "")

        with monkeypatch.context() as patch:
            patch.setattr(ShortPrompts, role, reworded)
            changed.add(make_prime().fingerprint)
    assert len(changed | {before}) == 5


def test_only_the_tasks_that_are_played_need_problems():
    with pytest.raises(ConfigError, match="no induction problem"):
        make_prime(2, 2)
    alone = make_prime(2, 2, tasks=("deduction",))
    assert alone.tasks == (Task.DEDUCTION,)
    assert [problem.content for problem in everything(alone, Task.DEDUCTION)] == ["1,2"]
    assert alone.fingerprint != make_prime(2, 2, tasks=("abduction",)).fingerprint
