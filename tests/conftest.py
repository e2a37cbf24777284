import pytest
from factories import make_problem

from shared.episodes import Problem, Task


@pytest.fixture
def seeds() -> dict[Task, list[Problem]]:
    return {task: [make_problem(f"key {i}", task) for i in range(5)] for task in Task}
