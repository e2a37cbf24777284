import random

import numpy as np
import pytest
import torch

from learner.random_state import load_random_state, save_random_state
from shared.errors import CheckpointError


def draw() -> list[float]:
    return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_every_generator_goes_on_where_it_was(tmp_path):
    draw()
    save_random_state(tmp_path / "random")
    expected = draw()
    assert draw() != expected
    load_random_state(tmp_path / "random")
    assert draw() == expected


@pytest.mark.parametrize("content", [b"", b"\x80", b"nonsense"])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "random").write_bytes(content)
    with pytest.raises(CheckpointError, match="random"):
        load_random_state(tmp_path / "random")
