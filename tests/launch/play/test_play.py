"""`primezero play` with a scripted engine."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from characters import CharacterChat, answer, make_sample
from model_files import CONFIG, make_model_folder

import launch.play.session
from launch.cli import main
from rollout.chat import ChatTokenizer
from shared.errors import EngineError

SHORT = ["--environment.prompts=short", "--sampling.max_prompt_tokens=300", "--sampling.max_response_tokens=20"]


class ScriptedEngine:
    """Proposes 3, 7; solves with 5, then 4, and so on alternately."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.prompts: list[str] = []
        self.ended = False
        self.says = ""

    async def generate(self, prompt_ids, **request):
        self.asked.append(request)
        self.prompts.append("".join(map(chr, prompt_ids)))
        if self.says == "died":
            raise EngineError("the engine has died")
        if self.says:
            return [make_sample(self.says)]
        if "Pose" in self.prompts[-1]:
            return [make_sample(answer("3, 7"))]
        return [make_sample(answer("45"[i % 2 - 1])) for i in range(request["n"])]

    async def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def engine(monkeypatch) -> ScriptedEngine:
    scripted = ScriptedEngine()

    async def start(config):
        scripted.config = config
        return scripted

    monkeypatch.setattr(launch.play.session, "start_engine", start)
    monkeypatch.setattr(ChatTokenizer, "from_folder", lambda _: CharacterChat())
    return scripted


@pytest.fixture
def model(tmp_path) -> Path:
    folder = make_model_folder(tmp_path / "run" / "model")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 4000}))
    return folder


def play(model: Path, *arguments: str) -> int:
    return main(["play", "--model", str(model), *SHORT, *arguments])


def test_a_problem_is_solved_greedily_and_judged(engine, model, capsys):
    assert play(model, "--p", "7", "--x", "3") == 0
    out = capsys.readouterr().out
    assert "[solver, deduction]\n   Find y with 3 * y = 1 (mod 7)." in out
    assert "-> correct, 19 tokens, log-probability -4.750\n   <answer>5</answer>" in out
    assert [request["temperature"] for request in engine.asked] == [0.0]
    assert engine.config.model.path == model.resolve()
    assert engine.ended


def test_a_wrong_answer_is_told_the_right_one(engine, model, capsys):
    assert play(model, "--p", "11", "--y", "3") == 0
    assert "-> wrong" in (out := capsys.readouterr().out)
    assert "4 would have been accepted" in out


def test_samples_are_drawn_as_in_training(engine, model, capsys):
    assert play(model, "--p", "7", "--x", "3", "--samples", "4", "--sampling.temperature=0.5") == 0
    assert "solved by 2 of 4" in capsys.readouterr().out
    assert [(request["n"], request["temperature"]) for request in engine.asked] == [(4, 0.5)]
    assert play(model, "--p", "7", "--x", "3", "--temperature", "0.25") == 0
    assert (engine.asked[-1]["n"], engine.asked[-1]["temperature"]) == (1, 0.25)


def test_a_proposal_is_judged_and_attempted(engine, model, capsys):
    assert play(model, "--propose", "deduction", "--json", "--run.seed=1") == 0
    proposer, solver = json.loads(capsys.readouterr().out)["turns"]
    assert (proposer["role"], proposer["responses"][0]["verdict"]) == ("proposer", "valid")
    assert solver["prompt"].startswith("Find y with 3 * y = 1 (mod 7).")
    assert (solver["accepted"], solver["responses"][0]["verdict"]) == ("5", "correct")
    assert solver["responses"][0]["token_ids"] == [*map(ord, answer("5")), 0]


def test_a_proposal_that_is_none_is_not_attempted(engine, model, capsys):
    engine.says = "nothing"
    assert play(model, "--propose", "induction") == 0
    assert capsys.readouterr().out.count("[") == 1
    assert len(engine.asked) == 1


def test_lines_are_answered_one_after_the_other_and_mistakes_are_no_end(engine, model, capsys, monkeypatch):
    lines = "p=7 x=3\nhuh\n\nhelp\np=8 x=3\npropose abduction\npropose abduction\nquit\np=7 x=1\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert play(model, "--json") == 0
    captured = capsys.readouterr()
    answered = [json.loads(line)["turns"] for line in captured.out.splitlines()]
    assert [[turn["role"] for turn in turns] for turns in answered] == [
        ["solver"],
        ["proposer", "solver"],
        ["proposer", "solver"],
    ]
    assert answered[1][0]["prompt"] != answered[2][0]["prompt"]
    assert "'huh' is not understood" in captured.err
    assert "p=8 x=3: p has to be a prime" in captured.err
    assert "find y (deduction)" in captured.err
    assert len({request["request_id"] for request in engine.asked}) == len(engine.asked) == 5
    assert engine.ended


def test_a_line_that_is_no_text_is_a_mistake_like_others(engine, model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xfcp=7\np=7 x=3\n"), encoding="utf-8"))
    assert play(model) == 0
    captured = capsys.readouterr()
    assert "is not understood" in captured.err
    assert "-> correct" in captured.out


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_prompt_is_on_the_screen_and_not_in_a_file_of_answers(engine, model, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr("sys.stdin", lines := io.StringIO("p=7 x=3\nquit\n"))
    monkeypatch.setattr(lines, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    assert play(model, "--json") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("> {" if is_terminal else "{")
    assert "quit, or Ctrl-D" in captured.err


def test_what_a_model_says_is_not_obeyed(engine, model, capsys):
    engine.says = "\x1b[2J\u202e"
    assert play(model, "--p", "7", "--x", "3") == 0
    assert "   ␛[2J\\u202e" in capsys.readouterr().out


def test_the_settings_of_the_runs_prompts_are_used(engine, model):
    (model / "primezero.toml").write_text('[environment]\nprompts = "short"\n[sampling]\nmax_response_tokens = 9\n')
    assert main(["play", "--model", str(model), "--p", "7", "--x", "3"]) == 0
    assert engine.prompts[0].startswith("Find y with")
    assert engine.asked[0]["max_tokens"] == 9


def test_an_engine_that_dies_ends_it(engine, model, capsys, monkeypatch):
    engine.says = "died"
    monkeypatch.setattr("sys.stdin", io.StringIO("p=7 x=3\np=7 x=3\n"))
    assert play(model) == 1
    assert "the engine has died" in capsys.readouterr().err
    assert len(engine.asked) == 1
    assert engine.ended


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--p", "7"], "give two of p, x and y"),
        (["--p", "seven", "--x", "3"], "p is a positive number"),
        (["--p", "8", "--x", "3"], "p has to be a prime"),
        (["--p", "7", "--x", "3", "--propose", "deduction"], "leave --p, --x and --y out"),
        (["--samples", "0"], "--samples 0"),
        (["--temperature", "3"], "--temperature 3"),
        (["--samples", "2", "--temperature", "0"], "the same answer again"),
        (["--sampling.max_response_tokens", "4000"], "reads 4000 tokens at most"),
        (["--learner.lrr", "1"], "learner.lrr: unknown key"),
    ],
)
def test_what_cannot_work_is_refused_before_an_engine_starts(engine, model, capsys, arguments, said):
    assert play(model, *arguments) == 1
    assert said in capsys.readouterr().err
    assert not hasattr(engine, "config")


def test_without_a_request_or_anything_to_read_one_from_no_engine_starts(engine, model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["play", "--model", str(model)]) == 1
    assert "no input to read requests from: give two of --p, --x and --y" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_explained(engine, model, capsys):
    assert play(model, "--p", "7", "--x", "3", "--sampling.max_prompt_tokens=20") == 1
    assert "sampling.max_prompt_tokens=20 is too small" in capsys.readouterr().err
    assert engine.ended
