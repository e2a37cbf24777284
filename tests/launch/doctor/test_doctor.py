"""`primezero doctor` as a whole, and the places that it looks at."""

from __future__ import annotations

import errno
import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.cli import main
from launch.doctor.findings import Finding, Status, run_checks
from launch.doctor.places import (
    check_addresses,
    check_disks,
    check_model,
    check_temporary_place,
    check_variables,
)
from launch.model_check import check_models
from launch.tiny_model import TinyModelSettings, make_tiny_model
from rollout.environment import make_environment
from shared.config import EnvironmentConfig
from shared.config_file import load_config
from shared.errors import ConfigError, ModelFolderError


def findings(checked) -> dict[str, Finding]:
    return {finding.name: finding for finding in checked}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doctor") / "tiny"
    settings = TinyModelSettings(layers=1, steps=0, max_response_tokens=1)
    make_tiny_model(folder, EnvironmentConfig(prompts="short"), settings=settings, seed=0)
    return folder


@pytest.fixture
def settings(tiny, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**34))
    shutil.copytree(tiny, tmp_path / "model")
    return [f"--run.folder={tmp_path / 'runs'}", *of_model(tmp_path / "model")]


def of_model(folder: Path) -> list[str]:
    lengths = ["--sampling.max_prompt_tokens=192", "--sampling.max_response_tokens=12"]
    return [f"--model.path={folder}", "--environment.prompts=short", *lengths]


def test_all_is_said_and_the_exit_code_is_0_where_nothing_stops_a_run(settings, capsys):
    assert main(["doctor", "--json", *settings]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    named = {finding["name"] for finding in report["findings"]}
    assert {"python", "torch", "C++ compiler", "ninja", "GPU", "memory", "disk", "shared memory"} <= named
    assert {"ports", "model folder", "CUDA allocator", "temporary folder"} <= named


def test_what_stops_a_run_is_the_exit_code_and_comes_with_advice(settings, capsys, monkeypatch, tmp_path):
    (tmp_path / "model/tokenizer.json").unlink()
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    assert main(["doctor", *settings]) == 1
    captured = capsys.readouterr()
    assert "primezero: environment, model folder: as long as that is so" in captured.err
    assert "tokenizer.json is" in captured.out
    assert main(["doctor", "--json", *settings]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    failed = [finding for finding in report["findings"] if finding["status"] == "fail"]
    assert [finding["name"] for finding in failed] == ["environment", "model folder"]
    assert all(finding["advice"] for finding in failed)


@pytest.mark.parametrize("columns", [80, 160])
def test_it_fits_the_terminal(settings, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    main(["doctor", *settings, "--model.path", "a/rather/long/name" * 12])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_a_model_is_looked_for_where_one_is_named(tiny, tmp_path):
    config = load_config(None, [f"--model.path={tmp_path / 'none'}"])
    (finding,) = check_model(load_config(None, of_model(tiny)), named=True)
    assert finding.status is Status.OK
    (finding,) = check_model(config, named=False)
    assert finding.status is Status.SKIP
    (finding,) = check_model(config, named=True)
    assert (finding.status, "primezero init-model" in finding.advice) == (Status.FAIL, True)


def test_what_a_model_folder_would_spoil_a_run_with_is_told_with_the_words_of_train(settings, tmp_path):
    config = load_config(None, settings)
    (tmp_path / "model/chat_template.jinja").write_text("<|im_start|>user\nHello<|im_end|>")
    (finding,) = check_model(config, named=True)
    with pytest.raises(ModelFolderError) as refused:
        check_models(make_environment(config.environment), config)
    assert (finding.status, finding.advice) == (Status.FAIL, str(refused.value))
    assert "would not be shown what it is asked" in finding.advice


def test_a_configuration_that_could_not_be_written_is_told(settings, tmp_path):
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": [1]}))
    (finding,) = check_model(load_config(None, settings), named=True)
    assert (finding.status, "config.json is refused: AttributeError" in finding.advice) == (Status.FAIL, True)


def test_a_template_that_tells_the_date_is_told(settings, tmp_path):
    template = tmp_path / "model/chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())
    model, chat = check_model(load_config(None, settings), named=True)
    assert (model.status, chat.status, "midnight" in chat.advice) == (Status.OK, Status.WARN, True)


def test_a_disk_without_room_is_told(settings, monkeypatch):
    config = load_config(None, settings)
    assert {finding.status for finding in check_disks(config)} == {Status.OK}
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**24))
    found = findings(check_disks(config))
    assert found["disk"].status is Status.WARN
    assert (found["shared memory"].status, "--shm-size" in found["shared memory"].advice) == (Status.WARN, True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=20))
    found = findings(check_disks(config))
    assert (found["disk"].status, "--run.folder" in found["disk"].advice) == (Status.FAIL, True)


def test_a_folder_of_somebody_else_is_told(settings, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    found = findings(check_disks(load_config(None, settings)))
    assert found["run folder"].status is Status.FAIL


def test_an_address_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="the learner cannot listen"):
            list(check_addresses(load_config(None, [f"--stream.endpoint={endpoint}"])))
    (finding,) = check_addresses(load_config(None))
    assert finding.status is Status.OK


def test_a_loopback_that_connects_nothing_stops_a_run(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("socket.socket.connect", refuse)
    (finding,) = check_addresses(load_config(None))
    assert (finding.status, "Network is unreachable" in finding.found) == (Status.FAIL, True)
    assert finding.advice


def test_a_port_of_the_monitor_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = load_config(None, [f"--monitor.port={taken.getsockname()[1]}"])
        (finding,) = check_addresses(config)
        assert (finding.status, "monitor.port" in finding.advice) == (Status.FAIL, True)
    (finding,) = check_addresses(config)
    assert finding.status is Status.OK


def test_a_temporary_folder_that_is_too_deep_for_sockets_is_told(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    (finding,) = run_checks([("temporary folder", check_temporary_place)])
    assert finding.status is Status.OK
    monkeypatch.setattr("tempfile.tempdir", "/home/somebody/scratch/tmp")
    (finding,) = run_checks([("temporary folder", check_temporary_place)])
    assert (finding.status, "TMPDIR=/tmp" in finding.advice) == (Status.FAIL, True)
    monkeypatch.setattr("tempfile.tempdir", "/tmp/ü")
    (finding,) = run_checks([("temporary folder", check_temporary_place)])
    assert (finding.status, "other letters than ASCII" in finding.advice) == (Status.FAIL, True)


def test_variables_that_runs_refuse_are_told(monkeypatch):
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
    (finding,) = run_checks([("environment", check_variables)])
    assert finding.status is Status.OK
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    (finding,) = run_checks([("environment", check_variables)])
    assert finding.status is Status.FAIL
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION is set" in finding.advice
