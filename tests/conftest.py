import pytest

from shared.episodes import Problem, Task


@pytest.fixture
def seeds() -> dict[Task, list[Problem]]:
    return {task: [Problem(task, f"content {i}", f"key {i}") for i in range(5)] for task in Task}
