"""`primezero bench soak`: what it makes of samples, and a short one of a real run."""

import json
import math
import subprocess
import sys

import psutil
import pytest
from model_files import make_model_folder

from launch.bench.growth import Change, Sample, Usage, change, growth_results
from launch.bench.soak import SoakSettings, bench_soak
from launch.bench.usage import Watch, label
from launch.cli import main
from shared.errors import ConfigError, PrimezeroError


@pytest.fixture(autouse=True)
def _no_prompts(monkeypatch):
    """The model folders of these tests have no tokenizer."""
    monkeypatch.setattr("launch.bench.workplace.with_prompt_room", lambda config: config)


def samples(minutes, usage, shm=lambda second: (1000, 2)):
    return [Sample(second, usage(second), *shm(second)) for second in range(0, minutes * 60, 10)]


def test_growth_is_between_medians_of_the_two_windows():
    def usage(second):
        outlier = 10**9 if second in (310, 890) else 0
        return {"learner-0": Usage(100 + second + outlier, 7)}

    found = change(samples(15, usage), lambda s: s.usage["learner-0"].memory, begin_s=300, window_s=60)
    # Seconds 300, 310 … 350 and 840 … 890; the outliers count as the largest of each.
    assert found == Change(100 + 335, 100 + 865)
    assert found.percent == pytest.approx(100 * (965 / 435 - 1))


def test_from_nothing_there_is_no_growth():
    assert Change(0, 5).percent is None


def test_windows_that_overlap_or_are_empty_are_refused():
    few = samples(6, lambda second: {})
    with pytest.raises(PrimezeroError, match="raise --minutes"):
        change(few, lambda s: s.shm_bytes, begin_s=300, window_s=60)
    with pytest.raises(PrimezeroError, match="raise --minutes"):
        change([], lambda s: s.shm_bytes, begin_s=0, window_s=60)


def test_every_label_is_reported_and_the_sum_but_not_who_was_there_only_once():
    def usage(second):
        held = {"launcher": Usage(2**20, 5), "ray raylet": Usage(3 * 2**20, 5 + second // 60, 2)}
        return held | ({"ray IDLE": Usage(2**20, 1)} if second > 400 else {})

    def shm(second):
        return (1000 + second, 2 if second < 600 else 3)

    found = {r.name: r for r in growth_results(samples(15, usage, shm), begin_s=300, window_s=60)}
    assert (found["launcher.memory"].value, found["launcher.growth"].value) == (1, 0)
    assert (found["ray raylet.files"].reference, found["ray raylet.files"].value) == (10, 19)
    assert "ray IDLE.memory" not in found
    assert (found["all.memory"].reference, found["all.memory"].value) == (4, 5)
    assert (found["all.processes"].reference, found["all.processes"].value) == (3, 4)
    assert found["all.growth"].value == pytest.approx(25)
    assert (found["shm.files"].reference, found["shm.files"].value) == (2, 3)
    assert found["shm.bytes"].value - found["shm.bytes"].reference == 865 - 325


@pytest.mark.parametrize(
    ("owner", "words", "name", "called"),
    [
        ("rollout-0", ["ray::RolloutProcess.run"], "ray::RolloutPro", "rollout-0"),
        ("rollout-0", ["VLLM::EngineCore"], "VLLM::EngineCor", "rollout-0 EngineCore"),
        ("rollout-1", ["python", "-c", "from multiprocessing.resource_tracker import main"], "python3.11", None),
        ("learner-1", ["ray::LearnerProcess.run"], "ray::LearnerPro", "learner-1"),
        (None, ["ray::IDLE"], "ray::IDLE", "ray IDLE"),
        ("rollout-0", ["primezero::RolloutWorker"], "primezero::Roll", "rollout-0 RolloutWorker"),
        ("rollout-0", ["primezero::fork server"], "primezero::fork", "rollout-0 fork server"),
        (
            None,
            ["/lib/raylet/raylet", "--command=python x/default_worker.py Worker resource_tracker"],
            "raylet",
            "ray raylet",
        ),
        (None, ["python", "-u", "/lib/ray/_private/log_monitor.py", "--x"], "python", "ray log_monitor"),
        (None, ["/lib/ray/core/gcs_server", "--log_dir=x"], "gcs_server", "ray gcs_server"),
    ],
)
def test_a_process_is_called_after_whose_it_is_and_what(owner, words, name, called):
    assert label(owner, words, name) == (called or "rollout-1 resource_tracker")


def test_a_sample_sees_memory_and_files_of_living_processes():
    code = "import sys; x = bytearray(b'x' * 50_000_000); f = open('/dev/null'); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    ended = psutil.Process(gone.pid)
    gone.wait()
    child.stdout.readline()
    try:
        found = Watch(launcher=child.pid).sample([psutil.Process(child.pid), ended], 3.0)
    finally:
        child.communicate()
    assert found.seconds == 3.0
    assert set(found.usage) == {"launcher"}
    assert 50_000_000 < found.usage["launcher"].memory < 150_000_000
    assert found.usage["launcher"].files >= 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minutes": 6}, "--minutes 6 is too short"),
        ({"minutes": 7}, "--minutes 7 is too short"),
        ({"interval_s": 40}, "--interval-s"),
        ({"interval_s": 0}, "--int"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        bench_soak(SoakSettings(**settings))


@pytest.mark.parametrize("interval_s", [7, 10, 25])
def test_whatever_is_not_refused_holds_two_windows(monkeypatch, tmp_path, interval_s):
    """The shortest run that is allowed, as its last sample is the furthest from the end."""
    minutes = 5 + 2 * 1 + interval_s / 60
    taken = [Sample(second, {}, 0, 0) for second in range(0, math.ceil(60 * minutes), interval_s)]
    monkeypatch.setattr("launch.bench.soak._samples", lambda *_: (taken, 1, 0))
    settings = SoakSettings(model=str(make_model_folder(tmp_path / "m")), interval_s=interval_s, minutes=minutes)
    assert bench_soak(settings).results


def test_a_run_that_does_not_end_when_it_is_told_to_is_an_error_with_its_last_words(tmp_path, monkeypatch):
    ended = []

    class Stuck:
        """A run that Ctrl-C does not end."""

        def __init__(self, *_, output, **__):
            self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            output.write("saving for ever\n")
            output.flush()

        def step(self):
            return 1

        def press_ctrl_c(self):
            pass

        def kill(self):
            self.process.communicate()
            ended.append(self.process.returncode)

    monkeypatch.setattr("launch.bench.soak.StartedRun", Stuck)
    monkeypatch.setattr("launch.bench.soak._watch", lambda *_: [])
    monkeypatch.setattr("launch.bench.soak._FINISH_S", 0.1)
    model = make_model_folder(tmp_path / "m")
    with pytest.raises(PrimezeroError, match=r"did not end within 0\.1 s of Ctrl-C:\nsaving for ever"):
        bench_soak(SoakSettings(model=str(model), folder=str(tmp_path / "soak")))
    assert len(ended) == 1


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_soak_reports_every_process_of_a_run(tmp_path, format_model):
    sizes = "--minutes 0.5 --baseline-minute 0.1 --window-minutes 0.1 --interval-s 1"
    places = ["--model", str(format_model), "--folder", str(tmp_path / "soak"), "--json", str(tmp_path / "soak.json")]
    assert main(["bench", "soak", *sizes.split(), *places]) == 0
    results = {r["name"]: r for r in json.loads((tmp_path / "soak.json").read_text())["results"]}
    for process in ("launcher", "learner-0", "rollout-0", "rollout-0 EngineCore", "ray raylet", "ray gcs_server"):
        assert results[f"{process}.memory"]["value"] > 1
        assert results[f"{process}.files"]["value"] > 3
    assert results["all.memory"]["value"] > results["learner-0.memory"]["value"]
    assert results["shm.bytes"]["value"] > 100_000
    assert results["steps"]["value"] > 1
    assert results["restarts"]["value"] == 0


def test_a_run_that_dies_is_an_error_with_its_last_words(tmp_path, format_model, monkeypatch):
    monkeypatch.setattr("launch.bench.started_run.CONFIG", tmp_path / "no-such-file.toml")
    with pytest.raises(PrimezeroError, match=r"(?s)ended by itself, with exit code 1:.*no-such-file\.toml"):
        bench_soak(SoakSettings(model=str(format_model), folder=str(tmp_path / "soak")))
