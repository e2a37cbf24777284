import pytest
from factories import make_problem
from hypothesis import HealthCheck, settings

from shared.episodes import Problem, Task

# A busy machine is no fault: nothing here is judged by the clock.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture
def seeds() -> dict[Task, list[Problem]]:
    return {task: [make_problem(f"key {i}", task) for i in range(5)] for task in Task}
