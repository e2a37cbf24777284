import numpy as np
import pytest

from launch.experiments.intervals import T_975, Interval, t_interval


@pytest.mark.parametrize("degrees", T_975)
def test_the_quantiles_leave_two_and_a_half_percent_above(degrees):
    x = np.linspace(0, T_975[degrees], 200_001)
    density = (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    # The density's constant from its integral over the half line, with x = √degrees·tan(angle).
    angle = np.linspace(0, np.pi / 2, 200_001)
    half = np.sqrt(degrees) * np.trapezoid(np.cos(angle) ** (degrees - 1), angle)
    assert np.trapezoid(density, x) / half == pytest.approx(0.95, abs=2e-5)


def test_the_interval_of_known_values():
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.3027 / 3**0.5)
    assert t_interval([0.5]) == Interval(0.5, None)
