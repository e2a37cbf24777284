import random
from collections import Counter

import pytest

from learner.problem_buffer import ProblemBuffer
from shared.episodes import Problem, Task


def problem(i: int) -> Problem:
    return Problem(Task.DEDUCTION, f"content {i}", f"key {i}")


def buffer_of(count: int, capacity: int = 100, seed: int = 0) -> ProblemBuffer:
    return ProblemBuffer({Task.DEDUCTION: [problem(i) for i in range(count)]}, capacity=capacity, seed=seed)


def test_duplicates_are_refused_by_key():
    buffer = buffer_of(3)
    assert not buffer.add(Problem(Task.DEDUCTION, "other content", "key 1"))
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
