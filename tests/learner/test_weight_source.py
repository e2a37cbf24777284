"""What is refused before it is sent."""

from __future__ import annotations

import pytest
import torch

from learner.weight_source import ModuleSource, check_finite, is_finite
from shared.errors import WeightSyncError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_seen_wherever_it_is(dtype: torch.dtype, value: float) -> None:
    for position in range(37):
        tensor = torch.linspace(-3, 3, 37).to(dtype)
        assert is_finite(tensor)
        tensor[position] = value
        assert not is_finite(tensor)


def test_the_largest_numbers_and_none_at_all_are_finite() -> None:
    largest = torch.finfo(torch.bfloat16).max
    assert is_finite(torch.tensor([largest, -largest], dtype=torch.bfloat16))
    assert is_finite(torch.empty(0, 4))


def test_what_is_finite_here_but_not_in_the_engines_dtype_is_named() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    source = ModuleSource(module)
    check_finite(source, source.shapes, torch.float16)
    with torch.no_grad():
        module[1].weight[2, 1] = 1e5  # float16 ends at 65504
    check_finite(source, source.shapes, torch.float32)
    with pytest.raises(WeightSyncError, match=r"1\.weight holds NaN or infinity in torch\.float16"):
        check_finite(source, source.shapes, torch.float16)
