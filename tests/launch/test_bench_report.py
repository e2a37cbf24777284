"""Shapes, the report's form, and what is refused before anything starts."""

import json
import os
import shutil
import socket
from argparse import Namespace
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

from launch.bench.benchmark import Benchmark
from launch.bench.command import _run
from launch.bench.models import SHAPES, bench_model, parameter_count, shape_config
from launch.bench.report import Report, Result, machine
from launch.cli import main
from rollout.chat import ChatTokenizer
from rollout.environment import make_environment
from shared.config import EnvironmentConfig
from shared.errors import ConfigError, PrimezeroError
from shared.model_folder import check_model_folder, stop_tokens


@dataclass(frozen=True)
class NoSettings:
    """Of a benchmark that has none."""


def report(*results: Result) -> Report:
    return Report(
        benchmark="sync", machine={"cpu": "x"}, model={"name": "m"}, settings={"requests": 16}, results=results
    )


def test_json_has_the_fields_that_others_read():
    written = json.loads(json.dumps(report(Result("pause", 0.2, "s", 0.1, "plain copy")).as_json()))
    assert written["benchmark"] == "sync"
    assert {"machine", "model", "settings"} < written.keys()
    assert written["results"] == [{"name": "pause", "value": 0.2, "unit": "s", "reference": 0.1, "ratio": 2.0}]


@pytest.mark.parametrize("reference", [None, 0.0])
def test_without_a_reference_there_is_no_ratio(reference):
    assert Result("calls", 3, "calls", reference).ratio is None


def test_the_table_lines_up():
    lines = report(Result("pause", 0.25, "s", 0.1, "plain copy"), Result("bytes", 7e8, "bytes")).as_table().splitlines()
    assert lines[0] == "benchmark sync"
    assert lines[-2].split() == ["pause", "0.25", "s", "0.1", "2.5", "plain", "copy"]
    assert lines[-1].split() == ["bytes", "700,000,000", "bytes"]
    assert lines[-2].index("0.25") + 4 == lines[-1].index("700,000,000") + 11


def test_the_machine_is_described_and_not_named():
    described = machine()
    assert described["cores"] >= 1
    assert described["torch"] == torch.__version__
    assert socket.gethostname() not in json.dumps(described)


def parameters(shape: str, vocabulary: int) -> int:
    with torch.device("meta"):
        return parameter_count(AutoModelForCausalLM.from_config(shape_config(SHAPES[shape], vocabulary)))


def test_the_default_shape_has_over_300m_parameters_whatever_its_vocabulary():
    assert 350e6 < parameters("qwen2.5-0.5b", 8) < 370e6


@pytest.mark.parametrize(
    ("shape", "vocabulary", "published"),
    [
        ("qwen2.5-0.5b", 151_936, 494_032_768),
        ("qwen2.5-1.5b", 151_936, 1_543_714_304),
        ("qwen2.5-3b", 151_936, 3_085_938_688),
        ("qwen2.5-7b", 152_064, 7_615_616_512),
    ],
)
def test_shapes_are_the_published_ones(shape, vocabulary, published):
    assert parameters(shape, vocabulary) == published


def test_a_shape_is_made_into_a_model_folder_and_goes_again():
    with bench_model("tiny", vocabulary=50, dtype="bfloat16") as model:
        loaded = model.load("bfloat16")
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        assert loaded.config.vocab_size == model.vocabulary == 50
        assert stop_tokens(model.folder) == [2]
        folder = model.folder
    assert not folder.exists()


def test_a_folder_is_taken_as_it_is_with_its_own_vocabulary(tmp_path):
    with bench_model("tiny", vocabulary=50, dtype="float32") as made:
        folder = tmp_path / "mine"
        shutil.copytree(made.folder, folder)
    with bench_model(str(folder), vocabulary=7, dtype="float32") as model:
        assert (model.folder, model.name, model.vocabulary) == (folder, "mine", 50)
    assert folder.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "qwen9"], "neither a folder nor one of the shapes tiny, small, qwen2.5-0.5b"),
        (["--model", "tiny", "--vocabulary", "3"], "--vocabulary 3 is too small"),
        (["--modes", "keep,hold"], "--modes hold: there is keep, keep_kv, wait, abort"),
        (["--modes", ""], "--modes is empty"),
        (["--transport", "pigeon"], "--transport pigeon: there is auto, shm"),
        (["--dtype", "int8"], "--dtype int8: there is bfloat16, float32"),
        (["--requests", "0"], "--requests must be at least 1"),
        (["--steady-steps", "1"], "--steady-steps must be at least 2"),
        (["--json", "/nowhere/report.json"], "cannot write /nowhere/report.json"),
        (["--rollout.threads", "2"], "a benchmark has no configuration"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(capsys, arguments, said):
    assert main(["bench", "sync", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_help_names_every_mode_and_no_option_repeats_its_name_as_its_value(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "sync", "--help"])
    said = capsys.readouterr().out
    assert ": one or several of keep, keep_kv, wait, abort" in " ".join(said.split())
    assert "--steady-s X" in said
    assert "STEADY" not in said


@pytest.mark.parametrize("error", [BrokenPipeError(), EOFError(), ConnectionResetError()])
def test_a_process_that_dies_without_a_word_is_an_error(error):
    def run(settings, say):
        raise error

    benchmark = Benchmark("none", "nothing", NoSettings, run, description="", examples="")
    with pytest.raises(PrimezeroError, match=r"has died.*want of memory"):
        _run(benchmark, Namespace(json=None), [])


@pytest.mark.parametrize("error", [None, EOFError(), PrimezeroError("failed")])
def test_what_libraries_say_is_shown_only_where_a_benchmark_fails(error, capfd):
    def run(settings, say):
        say("measuring")
        os.write(2, b"a library's words\n")
        if error is not None:
            raise error
        return report(), []

    benchmark = Benchmark("none", "nothing", NoSettings, run, description="", examples="")
    if error is None:
        _run(benchmark, Namespace(json=None), [])
    else:
        with pytest.raises(PrimezeroError):
            _run(benchmark, Namespace(json=None), [])
    said = capfd.readouterr().err
    assert said == "bench: measuring\n" + ("" if error is None else "a library's words\n")


def test_an_empty_folder_is_no_model(tmp_path, capsys):
    assert main(["bench", "sync", "--model", str(tmp_path)]) == 1
    assert "config.json is missing" in capsys.readouterr().err


def test_a_made_model_has_a_tokenizer_for_the_prompts_where_one_is_asked_for():
    environment = EnvironmentConfig(min_prime=2, max_prime=13, prompts="short")
    with bench_model("tiny", vocabulary=1024, dtype="float32", environment=environment) as model:
        check_model_folder(model.folder)
        chat = ChatTokenizer.from_folder(model.folder)
        assert stop_tokens(model.folder) == [chat.eos_token_id]
        env = make_environment(environment)
        problem = env.evaluation_problems(env.tasks[0], 1, seed=0)[0]
        assert len(chat.prompt_ids(env.solver_prompt(problem))) < 40
    with (
        pytest.raises(ConfigError, match="too small for the prompts"),
        bench_model("tiny", vocabulary=100, dtype="float32", environment=environment),
    ):
        pass
