import atexit
import gc
import signal

import pytest
from factories import make_problem
from hypothesis import HealthCheck, settings

from shared.episodes import Problem, Task

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them whatever they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no fault: nothing here is judged by the clock.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# launch/test.sh tries the same examples each time, so that what it says is of the change; pytest alone tries new ones.
settings.register_profile("same", settings.get_profile("unhurried"), derandomize=True)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start engines or several processes come first: neither of two workers waits for them at the end."""
    long = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """What is imported by now stays: libraries that collect garbage need not look through it each time."""
    gc.freeze()
    atexit.register(gc.unfreeze)


@pytest.fixture
def seeds() -> dict[Task, list[Problem]]:
    return {task: [make_problem(f"key {i}", task) for i in range(5)] for task in Task}
