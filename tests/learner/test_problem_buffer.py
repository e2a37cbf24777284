import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from factories import make_problem
from msgspec.structs import replace

from learner.problem_buffer import ProblemBuffer
from shared.episodes import Problem, Task
from shared.errors import CheckpointError


def problem(i: int) -> Problem:
    return make_problem(f"key {i}")


def buffer_of(count: int, capacity: int = 100, seed: int = 0) -> ProblemBuffer:
    return ProblemBuffer({Task.DEDUCTION: [problem(i) for i in range(count)]}, capacity=capacity, seed=seed)


def test_duplicates_are_refused_by_key():
    buffer = buffer_of(3)
    assert not buffer.add(replace(problem(1), content="other content"))
    assert buffer.add(problem(3))
    assert buffer.size(Task.DEDUCTION) == 4


def test_samples_are_distinct_and_uniform():
    buffer, rng = buffer_of(6), random.Random(0)
    counts: Counter[str] = Counter()
    for _ in range(3000):
        drawn = buffer.sample(Task.DEDUCTION, 3, rng)
        assert len({p.key for p in drawn}) == 3
        counts.update(p.key for p in drawn)
    assert all(abs(count - 1500) < 150 for count in counts.values())


def test_asking_for_more_than_there_is_gives_all():
    assert len(buffer_of(4).sample(Task.DEDUCTION, 9, random.Random(0))) == 4


def test_full_buffer_evicts_at_random_and_never_freezes():
    buffer = buffer_of(10, capacity=10)
    for i in range(10, 200):
        assert buffer.add(problem(i))
        assert buffer.size(Task.DEDUCTION) == 10
    kept = sorted(int(p.key.split()[1]) for p in buffer.sample(Task.DEDUCTION, 10, random.Random(0)))
    assert kept[0] >= 100  # problems enter and leave: nothing old survives 190 evictions among 10
    assert kept != list(range(190, 200))  # but the newest do not simply push out the oldest
    assert buffer.add(problem(0))  # what left may come back


def test_same_seed_evicts_alike():
    def contents(seed: int) -> list[str]:
        buffer = buffer_of(10, capacity=10, seed=seed)
        for i in range(10, 60):
            buffer.add(problem(i))
        return sorted(p.key for p in buffer.sample(Task.DEDUCTION, 10, random.Random(0)))

    assert contents(1) == contents(1)
    assert contents(1) != contents(2)


def test_a_task_without_seeds_is_refused():
    with pytest.raises(ValueError, match="abduction"):
        ProblemBuffer({Task.ABDUCTION: []}, capacity=5, seed=0)


@pytest.mark.parametrize("codec", [json, msgspec.msgpack], ids=["json", "msgpack"])
@pytest.mark.parametrize("taken", [3, 10, 40])
def test_a_restored_buffer_goes_on_exactly(codec, taken):
    def fill(buffer: ProblemBuffer, first: int, last: int) -> None:
        for i in range(first, last):
            buffer.add(problem(i))

    def drawn(buffer: ProblemBuffer) -> list[Problem]:
        return buffer.sample(Task.DEDUCTION, 6, random.Random(1))

    def encode(buffer: ProblemBuffer) -> Any:
        return (codec.encode if codec is msgspec.msgpack else codec.dumps)(buffer.state())

    original = buffer_of(2, capacity=10, seed=1)
    fill(original, 2, taken)
    restored = buffer_of(7, capacity=10, seed=9)
    state = encode(original)
    restored.restore((codec.decode if codec is msgspec.msgpack else codec.loads)(state))
    assert drawn(restored) == drawn(original)
    assert not restored.add(drawn(original)[0])  # duplicates are known
    for buffer in (original, restored):
        fill(buffer, 100, 150)  # evicts at random
    assert drawn(restored) == drawn(original)
    assert encode(restored) == encode(original) != state


def edited(state: dict[str, Any], edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    copy = json.loads(json.dumps(state))
    edit(copy)
    return copy


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("problems"), "problems"),
        (lambda s: s.update(surprise=1), "surprise"),
        (lambda s: s["problems"]["deduction"][0].pop(), "length"),
        (lambda s: s["problems"]["deduction"].append(s["problems"]["deduction"][0]), "not distinct"),
        (lambda s: s["problems"]["deduction"][0].__setitem__(0, "abduction"), "of another task"),
        (lambda s: s["problems"]["deduction"].clear(), "none"),
        (lambda s: s["problems"].update(abduction=[]), r"abduction.*not.*deduction"),
        (lambda s: s["random"][1].pop(), "malformed"),
        (lambda s: s["random"][1].__setitem__(0, -1), "malformed"),
        (lambda s: s["random"][1].__setitem__(-1, 10**6), "malformed"),
        (lambda s: s["random"].__setitem__(0, 99), "malformed"),
    ],
)
def test_a_malformed_state_is_refused_and_changes_nothing(edit, message):
    buffer = buffer_of(4)
    before = buffer.state()
    with pytest.raises(CheckpointError, match=message):
        buffer.restore(edited(before, edit))
    assert buffer.state() == before


def test_a_state_that_does_not_fit_the_capacity_says_what_to_set():
    with pytest.raises(CheckpointError, match=r"holds 9 deduction problems.*selfplay\.buffer_capacity=5"):
        buffer_of(3, capacity=5).restore(buffer_of(9).state())
