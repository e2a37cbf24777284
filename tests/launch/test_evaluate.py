"""`primezero eval` with a scripted engine, and once for real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from characters import CharacterChat, answer, make_sample
from model_files import CONFIG, make_model_folder
from used_segments import UsedSegments

import launch.evaluate
from launch.cli import main
from launch.evaluate import parse_bands
from rollout.chat import ChatTokenizer
from rollout.environment import make_environment
from rollout.evaluation import evaluation_set
from rollout.sample import Sample
from shared.config import EnvironmentConfig
from shared.config_file import dump_toml, load_config
from shared.episodes import Task
from shared.errors import ConfigError, EngineError

ROOT = Path(__file__).parents[2]
SHORT = ["--environment.prompts=short", "--sampling.max_prompt_tokens=200", "--sampling.max_response_tokens=20"]


class ScriptedEngine:
    """Answers 1 greedily, and i to sample i; the model "dumb" answers nothing. Keeps count of what is alive."""

    log: list[str]
    asked: list[dict]
    fails = False
    version = 0

    def __init__(self, model: Path) -> None:
        self._model = model.name

    @classmethod
    async def start(cls, model: Path, **settings) -> ScriptedEngine:
        cls.log.append(f"start {model.name}")
        os.write(2, b"noise of a library\n")
        cls.asked.append(settings)
        return cls(model)

    async def generate(self, prompt_ids, **request) -> list[Sample]:
        if self.fails:
            raise EngineError("the engine has died")
        type(self).asked.append(request)
        numbers = [1] if request["temperature"] == 0 else range(request["n"])
        return [make_sample("" if self._model == "dumb" else answer(str(number))) for number in numbers]

    async def shutdown(self) -> None:
        self.log.append(f"end {self._model}")


@pytest.fixture
def engine(monkeypatch) -> type[ScriptedEngine]:
    scripted = type("Scripted", (ScriptedEngine,), {"log": [], "asked": []})
    monkeypatch.setattr(launch.evaluate, "Engine", scripted)
    monkeypatch.setattr(ChatTokenizer, "from_folder", lambda _: CharacterChat())
    return scripted


@pytest.fixture
def folder(tmp_path) -> Path:
    return model_folder(tmp_path / "run" / "model")


def model_folder(path: Path) -> Path:
    make_model_folder(path)
    (path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 4000}))
    return path


def evaluated(folder: Path, *arguments: str) -> dict:
    """The JSON report."""
    path = folder.parent / "report.json"
    assert main(["eval", str(folder), "--json", str(path), *SHORT, *arguments]) == 0
    return json.loads(path.read_text())


def accuracies(group: dict, model: str = "model") -> dict[str, float]:
    return {task: row[model]["accuracy"]["value"] for task, row in group["tasks"].items()}


def test_the_table_and_the_report_say_the_same(engine, folder, capsys):
    report = evaluated(folder)
    band = report["bands"][0]
    # 1 is right where x (or y) is 1: once for each of the primes 2, 3, 5, 7, 11, 13.
    right = {"deduction": 6 / 35, "abduction": 6 / 35, "induction": 0}
    assert accuracies(band["trainable"]["all"]) == pytest.approx(right)
    assert band["trainable"]["all"]["mean"]["model"]["accuracy"]["value"] == pytest.approx(4 / 35)
    assert (band["min_prime"], band["max_prime"], band["held_out"]) == (2, 13, None)
    assert set(band["trainable"]["slices"]) == {"self-inverse"}
    assert (report["baseline_model"], report["samples"], report["temperature"]) == (None, 0, None)
    out = capsys.readouterr().out
    assert "deduction            35      0.171" in out
    assert "mean                 99      0.114" in out
    assert engine.log == ["start model", "end model"]


def test_all_bands_run_on_one_engine_with_the_configured_limits(engine, folder):
    report = evaluated(folder, "--bands", "2..13,5..7,17..17", "--model.dtype=float32", "--rollout.threads=3")
    assert [(b["min_prime"], b["max_prime"]) for b in report["bands"]] == [(2, 13), (5, 7), (17, 17)]
    assert accuracies(report["bands"][1]["trainable"]["all"])["deduction"] == pytest.approx(2 / 10)
    assert accuracies(report["bands"][2]["trainable"]["all"])["abduction"] == pytest.approx(1 / 16)
    assert engine.log == ["start model", "end model"]
    settings, *requests = engine.asked
    assert (settings["max_model_len"], settings["dtype"], settings["rollout"].threads) == (220, "float32", 3)
    assert {(r["n"], r["temperature"], r["max_tokens"]) for r in requests} == {(1, 0.0, 20)}
    assert len({r["request_id"] for r in requests}) == len(requests) == 99 + 28 + 47


def test_a_curriculum_does_not_narrow_what_is_evaluated(engine, folder):
    report = evaluated(folder, "--bands", "2..5,2..13", "--environment.curriculum=[[10, 7]]")
    assert [b["trainable"]["all"]["mean"]["problems"] for b in report["bands"]] == [7 + 7 + 4, 99]


def test_samples_give_pass_at_k_at_the_training_temperature(engine, folder):
    report = evaluated(folder, "--samples", "3", "--bands", "3..3")
    result = report["bands"][0]["trainable"]["all"]["tasks"]["deduction"]["model"]
    # Sample i answers i: of 0, 1 and 2 one is right modulo 3, for both problems; greedy 1 is right for one.
    assert result["pass_at"] == pytest.approx({"1": 1 / 3, "2": 2 / 3, "3": 1.0})
    assert result["accuracy"]["value"] == 0.5
    assert (report["samples"], report["temperature"]) == (3, 1.0)
    sampled = [r for r in engine.asked[1:] if r["temperature"] > 0]
    assert {(r["n"], r["temperature"]) for r in sampled} == {(3, 1.0)}
    assert len({r["seed"] for r in sampled}) == len(sampled) == 2 + 2 + 1


def test_temperature_and_problems_are_short_for_configuration_keys(engine, folder):
    report = evaluated(folder, "--samples", "1", "--temperature", "0.5", "--problems", "4")
    assert report["problems_per_task"] == 4
    assert report["bands"][0]["trainable"]["all"]["mean"]["problems"] == 12
    assert {r["temperature"] for r in engine.asked[1:]} == {0.0, 0.5}


def test_held_out_classes_stand_apart(engine, folder):
    report = evaluated(folder, "--environment.held_out=0.3", "--bands", "2..31")
    band = report["bands"][0]
    environment = make_environment(EnvironmentConfig(max_prime=31, held_out=0.3, prompts="short"))
    for name, held_out in (("trainable", False), ("held_out", True)):
        problems = [p for p in evaluation_set(environment, 512, held_out=held_out) if p.task is Task.DEDUCTION]
        row = band[name]["all"]["tasks"]["deduction"]
        right = sum(problem.answer == "1" for problem in problems)
        assert (row["problems"], row["model"]["accuracy"]["value"]) == (len(problems), right / len(problems))
        assert row["baselines"] == environment.baselines(problems)


def test_a_second_model_is_evaluated_on_the_same_problems_after_the_first(engine, folder, capsys):
    dumb = model_folder(folder.parent / "dumb")
    report = evaluated(folder, "--baseline-model", str(dumb))
    assert engine.log == ["start model", "end model", "start dumb", "end dumb"]
    row = report["bands"][0]["trainable"]["all"]["tasks"]["deduction"]
    assert row["model"]["accuracy"]["value"] == pytest.approx(6 / 35)
    assert (row["baseline_model"]["accuracy"]["value"], row["baseline_model"]["unparsable"]) == (0, 1)
    assert row["difference"]["value"] == pytest.approx(6 / 35)
    assert row["difference"]["low"] < 6 / 35 < row["difference"]["high"]
    assert f"baseline model  {dumb}" in capsys.readouterr().out


def test_the_configuration_of_the_run_is_used_and_named(engine, folder, capsys):
    config = load_config(None, [*SHORT, "--environment.max_prime=5"])
    (folder.parent / "config.toml").write_text(dump_toml(config))
    assert main(["eval", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "primes 2..5" in captured.out
    assert f"the configuration that the model was trained with, {folder.parent / 'config.toml'}" in captured.err
    other = folder.parent / "other.toml"
    other.write_text('[environment]\nmax_prime = 7\nprompts = "short"\n')
    assert main(["eval", str(folder), "--config", str(other)]) == 0
    captured = capsys.readouterr()
    assert "primes 2..7" in captured.out
    assert "trained with" not in captured.err


def test_what_libraries_say_at_the_start_is_shown_only_where_the_engine_fails(engine, folder, capfd):
    assert main(["eval", str(folder), *SHORT]) == 0
    said = capfd.readouterr().err
    assert "starting the engine" in said
    assert "noise" not in said
    engine.fails = True
    assert main(["eval", str(folder), *SHORT]) == 1
    assert "noise of a library\n" in capfd.readouterr().err


def test_the_engine_is_ended_when_it_fails(engine, folder, capsys):
    engine.fails = True
    assert main(["eval", str(folder), *SHORT]) == 1
    assert "primezero: EngineError: the engine has died" in capsys.readouterr().err
    assert engine.log == ["start model", "end model"]


def test_the_engine_is_ended_by_ctrl_c(engine, folder, capsys, monkeypatch):
    async def interrupted(self, prompt_ids, **request):
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(60)

    monkeypatch.setattr(engine, "generate", interrupted)
    assert main(["eval", str(folder), *SHORT]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert engine.log == ["start model", "end model"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bands", "5-101"], "'5-101' is not a band"),
        (["--bands", ""], "'' is not a band"),
        (["--bands", "14..16"], "band 14..16: no prime in [14, 16]"),
        (["--bands", "2..13,2..2"], "band 2..2: environment: no induction problem"),
        (["--bands", "2..200000"], "band 2..200000: Input should be less than or equal to 100000"),
        (["--samples", "-1"], "--samples"),
        (["--temperature", "1"], "--temperature is for --samples"),
        (["--samples", "2", "--temperature", "0"], "sampling.temperature"),
        (["--problems", "0"], "environment.evaluation_problems_per_task"),
        (["--json", "no/such/folder/report.json"], "cannot write no/such/folder/report.json"),
        (["--config", "no.toml"], "cannot read the configuration no.toml"),
        (["--sampling.max_prompt_tokens", "20"], "sampling.max_prompt_tokens=20 is too small"),
        (["--sampling.max_response_tokens", "4000"], "reads 4000 tokens at most"),
        (["--baseline-model", "no/model"], "name another by --baseline-model"),
        (["--learner.lrr", "1"], "learner.lrr: unknown key"),
    ],
)
def test_what_cannot_work_is_refused_before_an_engine_starts(engine, folder, capsys, arguments, said):
    assert main(["eval", str(folder), *SHORT, *arguments]) == 1
    assert said in capsys.readouterr().err
    assert engine.log == []


def test_a_missing_model_folder_is_named(engine, tmp_path, capsys):
    assert main(["eval", str(tmp_path / "none"), *SHORT]) == 1
    assert f"the model folder {tmp_path / 'none'} does not exist" in capsys.readouterr().err


def test_bands_are_read_in_their_order():
    assert parse_bands("5..617, 2..13,7..7") == ((5, 617), (2, 13), (7, 7))


@pytest.mark.parametrize(
    "text", ["", "5", "5..", "5..3", "5..7,", "5...7", "-5..7", "5..7;2..3", "٥..٧", "5..9999999999"]
)
def test_malformed_bands_are_refused(text):
    with pytest.raises(ConfigError, match="is not a band; write"):
        parse_bands(text)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The folder for temporary files, with a short path for the sockets in it: afterwards it has to be empty."""
    with tempfile.TemporaryDirectory(prefix="pz", dir="/tmp") as folder:
        yield Path(folder)
        assert list(Path(folder).iterdir()) == []


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    from launch.tiny_model import TinyModelSettings, make_tiny_model

    path = tmp_path_factory.mktemp("model") / "tiny"
    settings = TinyModelSettings(steps=60)
    make_tiny_model(path, EnvironmentConfig(prompts="short"), settings=settings, seed=0)
    return path


def command(model: Path, *arguments: str) -> list[str]:
    settings = ["--config", str(ROOT / "launch/configs/cpu_demo.toml"), "--rollout.threads=1"]
    return [sys.executable, "-m", "launch.cli", "eval", str(model), *settings, *arguments]


@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_a_real_engine_finds_what_transformers_finds(tiny_model, tmp_path, temporary):
    from launch.tiny_model import greedy_accuracy

    path = tmp_path / "report.json"
    arguments = ["--bands", "2..13,17..23", "--samples", "4", "--baseline-model", str(tiny_model), "--json", str(path)]
    finished = subprocess.run(
        command(tiny_model, *arguments),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary), "VLLM_USE_MODELSCOPE": "True"},
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(path.read_text())
    config = load_config(ROOT / "launch/configs/cpu_demo.toml")
    expected = greedy_accuracy(tiny_model, config.environment)
    group = report["bands"][0]["trainable"]["all"]
    assert {task: row["problems"] for task, row in group["tasks"].items()} == {
        "deduction": 35,
        "abduction": 35,
        "induction": 29,
    }
    for task, result in expected.tasks.items():
        row = group["tasks"][task]
        # Float sums differ between the two in their last bits: one near-tie may fall differently.
        assert row["model"]["accuracy"]["value"] == pytest.approx(result.accuracy, abs=1.01 / result.problems)
        assert row["model"]["response_tokens"] == pytest.approx(result.response_tokens, abs=0.5)
        assert row["baseline_model"]["accuracy"] == row["model"]["accuracy"]
        assert row["difference"]["value"] == 0
        passed = list(row["model"]["pass_at"].values())
        assert len(passed) == 3
        assert 0 < passed[0] < passed[1] < passed[2] < 1
    assert group["mean"]["model"]["accuracy"]["value"] > 0.1
    assert (
        f"model           {tiny_model}\nbaseline model  {tiny_model}\n\nprimes 2..13, greedy, model\n"
        in finished.stdout
    )


@pytest.mark.integration
@pytest.mark.parametrize("moment", ["starting the engine", "4000 samples"])
def test_interrupted_for_real_it_leaves_nothing_behind(tiny_model, temporary, moment):
    process = subprocess.Popen(
        command(tiny_model, "--samples", "4000", "--bands", "2..101"),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary), "VLLM_USE_MODELSCOPE": "True"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    launcher = psutil.Process(process.pid)
    segments = UsedSegments(lambda: [launcher, *launcher.children(recursive=True)])
    assert process.stderr is not None
    while moment not in (line := process.stderr.readline()):
        assert line, "it ended before that"
    time.sleep(3)
    while not segments.seen:  # on a busy machine the engine has not begun by then
        assert process.poll() is None
        time.sleep(0.1)
    children = launcher.children(recursive=True)
    # A terminal sends the signal to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=500)
    assert process.returncode == 130, said
    assert "primezero: interrupted" in said
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert segments.left() == set()
