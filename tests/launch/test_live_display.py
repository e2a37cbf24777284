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
STAMP = "2026-01-02 03:04:05,678"


def vitals(**resident_gib: float) -> Vitals:
    known = Vitals(NAMES)
    resident = {name.replace("_", "-"): int(gib * 2**30) for name, gib in resident_gib.items()}
    known.look(set(NAMES), dict.fromkeys(NAMES, 3), resident)
    return known


def display_on(
    width: int, tmp_path, *, known: Vitals | None = None, version: int = 0, height: int = 50
) -> tuple[LiveDisplay, Console]:
    config = load_config(None, ["--run.folder", str(tmp_path), "--run.name", "mine", "--run.steps", "80"])
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    return LiveDisplay(config, Records(config.run_folder, version), known or vitals(), console), console


def drawn(display: LiveDisplay, console: Console) -> str:
    with console.capture() as capture:
        console.print(display)
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("tasks", [TASKS[1:2], TASKS])
def test_the_panel_fits_and_shows_what_a_run_does(tmp_path, width, tasks):
    display, console = display_on(width, tmp_path, known=vitals(learner_0=3.0, rollout_0=1.25))
    for step in range(1, 61):
        display.step(step_record(step, tasks))
    display.evaluation(evaluation_record(60, tasks))
    lines = drawn(display, console).splitlines()
    assert {cell_len(line.rstrip()) for line in lines} == {width - ECHO_WIDTH}
    text = "\n".join(lines)
    for task in TASKS:
        assert (re.search(rf"│ {task} +0.60  [▁-█]+  0.50  [▁-█]+ +-0.25 ▁+ +-0.25 ▁+", text) is not None) == (
            task in tasks
        )
    for shown in (
        "step 60 of 80  0:02:00 gone, about 0:00:40 left",
        "rollout 5.0k",
        "learner, while it trains 3.0k",
        "trains 50%  waits for rollout 25%  sends weights 25%",
        "staleness 1.00",
        "mismatch 1.0e-03",
        "learner 3.00 GiB  rollout 1.25 GiB",
        "proposer reward",
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


def write_log(tmp_path, process: str, *lines: str) -> None:
    log = tmp_path / "mine" / "logs" / f"{process}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n".join(lines) + "\n")


def test_what_was_started_again_says_how_far_it_has_come_until_the_next_step(tmp_path):
    display, console = display_on(100, tmp_path)
    display.step(step_record(1))
    write_log(tmp_path, "rollout-0", f"{STAMP} INFO rollout.worker: starts the engine")
    assert "processes" not in drawn(display, console)
    display.restart(Restart("rollout-0", "the process of rollout-0 died", 1, 5, 0.0, Origin(0)))
    assert re.search(r"processes +rollout-0 starts the engine", drawn(display, console))
    display.step(step_record(2))
    assert "processes" not in drawn(display, console)


def test_before_the_first_record_each_process_is_shown_with_what_it_does(tmp_path):
    known = Vitals(NAMES)
    display, console = display_on(100, tmp_path, known=known)
    assert re.search(r"Ray +starting +│\n│ learner-0 +waits for Ray", drawn(display, console))
    write_log(tmp_path, "learner-0", f"{STAMP} INFO learner.trainer: of an earlier start")
    write_log(
        tmp_path,
        "rollout-0",
        f"{STAMP} INFO rollout.worker: starts the engine",
        f"{STAMP} INFO shards: 10%\r(Core pid=7) INFO 01-02 03:04:05 [loader.py:12] Loading \x1b[2Jweights [1/2]",
        "(Core pid=7) WARNING 01-02 03:04:05 [loader.py:12] Triton is not installed",
        "  of the warning's second line",
        "",
    )
    known.look(set(NAMES), {"learner-0": -1, "rollout-0": 2}, {})
    text = drawn(display, console)
    assert re.search(r"learner-0 +starting +│", text)
    # without the escape, which would clear the screen
    assert re.search(r"rollout-0 +starts the engine +Loading ␛\[2Jweights \[1/2\] +│", text)


def test_before_the_first_step_there_is_no_line_without_a_number(tmp_path):
    display, console = display_on(80, tmp_path)
    display.evaluation(evaluation_record(0))
    text = drawn(display, console)
    assert "step 0 of 80  the first batch is under way" in text
    assert not re.search(r"│ \w+ +│", text)


@pytest.mark.parametrize("height", [7, 12, 15, 24])
def test_on_a_low_terminal_the_panel_is_whole_with_what_matters_most(tmp_path, height):
    display, console = display_on(80, tmp_path, height=height)
    for step in range(1, 61):
        display.step(step_record(step))
    display.evaluation(evaluation_record(60))
    lines = drawn(display, console).splitlines()
    assert len(lines) <= height
    assert lines[-1].startswith("╰")
    text = "\n".join(lines)
    assert "step 60 of 80" in text
    assert "induction" in text
    assert ("evaluation" in text) == (height > 7)
    assert ("restarts" in text) == (height >= 15)


@pytest.mark.parametrize(("width", "columns"), [(60, 4), (50, 4), (40, 2)])
def test_on_a_narrow_terminal_no_number_is_cut(tmp_path, width, columns):
    display, console = display_on(width, tmp_path)
    for step in range(1, 61):
        display.step(step_record(step))
    text = drawn(display, console)
    assert "…" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("│ deduction")]
    assert row.strip("│ ").split()[1:] == ["0.60", "0.50", "-0.25", "-0.25"][:columns]


def test_a_number_stays_on_a_line_with_its_name(tmp_path):
    display, console = display_on(60, tmp_path)
    display.step(step_record(1) | {"phases": {"wait_s": 4.0, "train_s": 3.0, "sync_s": 2.0, "checkpoint_s": 1.0}})
    lines = [line.strip("│ ") for line in drawn(display, console).splitlines()]
    at = lines.index("learner     waits for rollout 40%  trains 30%")
    assert lines[at + 1] == "sends weights 20%  saves 10%"


def test_where_a_run_stands_is_said_until_after_its_end(tmp_path):
    display, console = display_on(100, tmp_path)
    display.step(step_record(60))
    assert "step 60 of 80  0:02:00 gone, about" in drawn(display, console)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "STOP").touch()
    assert "step 60 of 80  stopping after this step" in drawn(display, console)
    with display:
        pass
    assert "step 60 of 80, ended after 0:02:00" in drawn(display, console)
    display, console = display_on(100, tmp_path / "other")
    with display:
        pass
    assert "ended while starting" in drawn(display, console)
    display, console = display_on(100, tmp_path / "other")
    display.step(step_record(80))
    assert "step 80 of 80  0:02:40 gone, finishing" in drawn(display, console)


def test_what_a_narrower_terminal_has_wrapped_is_taken_away(tmp_path):
    display, console = display_on(60, tmp_path)
    display.step(step_record(1))
    lines_60 = len(drawn(display, console).splitlines())
    console.width = 100
    lines = len(drawn(display, console).splitlines())
    display._live.auto_refresh = False

    def went_up(width: int) -> int:
        console.width = width
        with console.capture() as capture:
            display._live.refresh()
        return capture.get().count("\x1b[1A")

    with display:
        assert went_up(100) == 0
        assert went_up(120) == lines - 1
        assert went_up(60) == 2 * lines - 1  # each line of 117 cells was wrapped into two
        assert went_up(60) == lines_60 - 1


def test_lines_above_the_panel_are_folded_between_words_and_paths_stay_whole(tmp_path):
    display, console = display_on(30, tmp_path)
    path = "/a/rather/long/path/that/does/not/fit"
    with console.capture() as capture:
        display.say(f"the run's folder is here: {path} and so on")
    assert capture.get().splitlines() == ["the run's folder is here:", path, "and so on"]


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
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "STOP").touch()
    with pytest.raises(ZeroDivisionError), display:  # noqa: PT012
        display._live.refresh()
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


def test_a_terminal_without_the_panel_s_characters_gets_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    config = load_config(None, ["--run.display=live"])
    for encoding, kind in (("utf-8", LiveDisplay), ("latin-1", PlainDisplay)):
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert type(open_display(config, Records(tmp_path, 0), vitals())) is kind


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


def test_a_bar_is_filled_to_half_a_cell():
    assert bar(0.5, 4) == ("━━", "──")
    assert bar(1 / 8, 4) == ("╾", "───")
    assert bar(7.0, 2) == ("━━", "")
    assert bar(0.0, 2) == ("", "──")
