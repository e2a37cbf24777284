import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from recorded_runs import step_record

from launch.plotting import MOST_LINES, figure_style, plain, style
from launch.report import figures
from launch.report.figures import _legend, _shortened, phase_seconds, plot_png, running_mean, time_png
from launch.report.measures import PLOTS, Curve

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_running_mean_skips_what_is_missing():
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan, 9.0])
    expected = [1.0, np.nan, 3.0, 4.0, np.nan, np.nan, 9.0]
    np.testing.assert_allclose(running_mean(values, 2), expected)
    np.testing.assert_array_equal(running_mean(values, 1), values)
    np.testing.assert_allclose(running_mean(np.arange(4.0), 4), [0, 0.5, 1, 1.5])


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_a_figure_is_drawn_of_any_number_of_steps(steps):
    curves = [Curve("a", list(range(steps)), [None if i % 7 == 3 else float(i) for i in range(steps)])] * 7
    for plot in PLOTS[:2]:
        assert plot_png(plot, curves).startswith(PNG)


def test_the_same_data_give_the_same_bytes():
    curve = Curve("a $x$ _b", [1, 2], [0.5, 0.25])
    assert plot_png(PLOTS[0], [curve]) == plot_png(PLOTS[0], [curve])


def test_a_logarithmic_axis_does_without_positive_values():
    (log,) = [plot for plot in PLOTS if plot.scale == "log"]
    assert plot_png(log, [Curve("a", [1, 2], [0.0, 0.0])]).startswith(PNG)


def test_lines_differ_in_more_than_colour():
    looks = {
        (str(look["linestyle"]), look["marker"], look.get("markerfacecolor"))
        for look in (style(index) for index in range(MOST_LINES))
    }
    assert len(looks) == MOST_LINES == 10
    assert len({line for line, _, _ in looks}) == 5


def test_names_are_shown_as_they_are():
    assert plain("a$b$") == r"a\$b\$"
    assert plain("_hidden") == " _hidden"


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (["deduction", "abduction", "induction", "mean of tasks"], 1),
        (["a run whose name is of forty-four characters"] * 4, 4),
        (["of twenty characters"] * 4, 2),
    ],
)
def test_a_legend_is_inside_the_picture_and_takes_nothing_from_the_axes(labels, rows):
    with figure_style():
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        axes = figure.subplots()
        for label in labels:
            axes.plot([0, 1], label=label)
        figure.draw_without_rendering()
        before = axes.get_window_extent().height
        _legend(figure, len(labels))
        figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len({round(text.get_window_extent().y0) for text in legend.get_texts()}) == rows
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height
    assert axes.get_window_extent().height == pytest.approx(before, abs=0.1 * before)
    assert axes.get_window_extent().y1 < box.y0


def test_a_long_name_keeps_its_beginning_and_its_end():
    assert _shortened("a" * 44) == "a" * 44
    assert _shortened("a" * 30 + "b" * 30) == "a" * 22 + "…" + "b" * 21


def test_where_the_time_went_is_drawn_for_few_and_many_steps():
    assert time_png([step_record(1)]).startswith(PNG)
    assert time_png([step_record(step) for step in range(1, 200)]).startswith(PNG)
    assert time_png([{"step": 1}, {"step": 2, "phases": {}}]) is None


@pytest.mark.parametrize("steps", [1, 59, 61, 100, 200])
def test_bars_stand_beside_one_another_over_the_steps_that_they_are_of(monkeypatch, steps):
    drawn = []
    monkeypatch.setattr(Axes, "bar", lambda _, *arguments, **__: drawn.append(arguments))
    monkeypatch.setattr(figures, "_legend", lambda *_: None)
    time_png([step_record(step) for step in range(1, steps + 1)])
    middles, _, widths, _ = map(np.asarray, drawn[0])
    left, right = middles - widths / 2, middles + widths / 2
    assert (left[1:] > right[:-1]).all()
    assert 0.5 < left[0] < 1
    assert steps < right[-1] < steps + 0.5


def test_phases_are_named_in_words_the_longest_first():
    records = [step_record(1), {"phases": {"train_s": 4.0, "new_s": 1.0}}]
    assert phase_seconds(records) == {
        "update": [0.5, 4.0],
        "new_s": [0.0, 1.0],
        "waiting for the batch": [1.0, 0.0],
        "weight sync": [0.5, 0.0],
    }
