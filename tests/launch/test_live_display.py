import io
import json
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from run_records import TASKS, evaluation_record, step_record

from launch.display import open_display
from launch.display.live import ECHO_WIDTH, LiveDisplay
from launch.display.plain import PlainDisplay
from launch.display.trends import bar, sparkline
from launch.records import Records
from launch.supervisor import Origin, Restart
from launch.vitals import Vitals
from shared.config_file import load_config

NAMES = ["learner-0", "rollout-0"]


def vitals() -> Vitals:
    known = Vitals(NAMES)
    known.look(set(NAMES), dict.fromkeys(NAMES, 3))
    return known


def display_on(width: int, tmp_path, *, known: Vitals | None = None, version: int = 0) -> tuple[LiveDisplay, Console]:
    config = load_config(None, ["--run.folder", str(tmp_path), "--run.name", "mine", "--run.steps", "80"])
    console = Console(file=io.StringIO(), width=width, height=50, force_terminal=True)
    return LiveDisplay(config, Records(config.run_folder, version), known or vitals(), console), console


def drawn(display: LiveDisplay, console: Console) -> str:
    with console.capture() as capture:
        console.print(display)
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("tasks", [TASKS[1:2], TASKS])
def test_the_panel_fits_and_shows_what_a_run_does(tmp_path, width, tasks):
    display, console = display_on(width, tmp_path)
    for step in range(1, 61):
        display.step(step_record(step, tasks))
    display.evaluation(evaluation_record(60, tasks))
    lines = drawn(display, console).splitlines()
    assert {cell_len(line.rstrip()) for line in lines} == {width - ECHO_WIDTH}
    text = "\n".join(lines)
    for task in TASKS:
        assert (re.search(rf"│ {task} +0.60 [▁-█]+ +0.50 [▁-█]+ +-0.25 ▁+ +-0.25 ▁+", text) is not None) == (
            task in tasks
        )
    for shown in (
        "step 60 of 80  0:02:00 gone, about 0:00:40 left",
        "rollout 5.0k",
        "learner, while it trains 3.0k",
        "trains 50%  waits for rollout 25%  sends weights 25%",
        "staleness 1.00",
        "mismatch 1.0e-03",
        "learner 3.00 GiB",
        "0.500  ",
        "at step 60",
        "none",
    ):
        assert shown in text


def test_a_restart_is_shown_and_what_comes_again_is_forgotten(tmp_path):
    display, console = display_on(100, tmp_path)
    for step in range(1, 10):
        display.step(step_record(step))
    display.restart(Restart("learner", "the process of learner-0 died", 1, 5, 0.0, Origin(1, 4)))
    text = drawn(display, console)
    assert "step 4 of 80" in text
    assert "1, the last of learner: the process of learner-0 died" in text


def test_before_the_first_record_each_process_is_shown_with_its_last_line(tmp_path):
    known = Vitals(NAMES)
    display, console = display_on(100, tmp_path, known=known)
    assert re.search(r"Ray +starting +│\n│ learner-0 +waiting for Ray", drawn(display, console))
    log = tmp_path / "mine" / "logs" / "rollout-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("first\n2026-01-02 03:04:05,678 INFO shards: 10%\rLoading \x1b[2Jweights [1/2]\n\n")
    known.look(set(NAMES), {"learner-0": -1, "rollout-0": 2})
    text = drawn(display, console)
    assert re.search(r"learner-0 +starting", text)
    assert re.search(
        r"rollout-0 +loading +Loading \[2Jweights \[1/2\] +│", text
    )  # without the escape, which would clear the screen


def test_a_resumed_run_goes_on_with_its_trends(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step_record(step)) + "\n" for step in range(1, 6)))
    display, console = display_on(100, tmp_path, version=4)
    assert "starting" in drawn(display, console)
    display.step(step_record(5))
    assert "step 5 of 80" in drawn(display, console)
    assert len(display._view.records) == 5


def test_what_goes_wrong_with_drawing_is_shown_and_not_raised(tmp_path):
    display, console = display_on(100, tmp_path)
    display.step({"step": 1})
    assert "cannot be drawn" in drawn(display, console)


def test_the_terminal_is_as_it_was_and_interrupts_are_shown(tmp_path):
    display, console = display_on(100, tmp_path)
    display.step(step_record(1))
    display.stopping()
    with pytest.raises(ZeroDivisionError), display:
        1 / 0  # noqa: B018
    written = console.file.getvalue()
    assert "stopping after this step" in written
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert written.endswith(("\n", "\x1b[?25h"))


def test_no_color_is_heeded(tmp_path, monkeypatch):
    def colours() -> set[str]:
        display, _ = display_on(100, tmp_path)
        display.step(step_record(1))
        console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="256")
        console.print(display)
        return set(re.findall(r"\x1b\[[0-9;]*?3[0-7]m", console.file.getvalue()))

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()


@pytest.mark.parametrize(
    ("asked", "is_terminal", "kind"),
    [
        ("auto", False, PlainDisplay),
        ("auto", True, LiveDisplay),
        ("plain", True, PlainDisplay),
        ("quiet", True, PlainDisplay),
        ("live", False, LiveDisplay),
    ],
)
def test_what_is_shown_depends_on_the_output_unless_it_is_chosen(tmp_path, monkeypatch, asked, is_terminal, kind):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", stdout := io.StringIO())
    monkeypatch.setattr(stdout, "isatty", lambda: is_terminal, raising=False)
    config = load_config(None, ["--run.display", asked])
    assert type(open_display(config, Records(tmp_path, 0), vitals())) is kind


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout", stdout := io.StringIO())
    monkeypatch.setattr(stdout, "isatty", lambda: True, raising=False)
    assert type(open_display(load_config(None), Records(tmp_path, 0), vitals())) is PlainDisplay


def test_quiet_says_nothing_of_steps(capsys):
    quiet = PlainDisplay(10, quiet=True)
    quiet.say("a line")
    quiet.step(step_record(2))
    assert capsys.readouterr().out == ""


def test_a_sparkline_has_the_height_of_its_numbers():
    assert sparkline([0.0, 0.5, 1.0], 8, 0.0, 1.0) == "▁▅█"
    assert sparkline([1.0, None, 3.0, float("nan")], 8) == "▁ █ "
    assert sparkline([2.0, 2.0], 8) == "▁▁"
    assert sparkline([0.0, 1.0, 0.0, 1.0], 2, 0.0, 1.0) == "▅▅"  # neighbours are averaged
    assert sparkline([None], 8) == ""
    assert sparkline([1.0], 0) == ""


def test_a_bar_is_filled_to_an_eighth():
    assert bar(0.5, 4) == "██  "
    assert bar(1 / 32, 4) == "▏   "
    assert bar(7.0, 2) == "██"
