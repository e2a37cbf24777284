"""What a run is given and checked for before any process starts."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from characters import CharacterChat

import launch.model_check
import launch.train
from launch.beginnings import seed_stages
from launch.leftovers import Leftovers
from launch.lengths import check_context
from launch.model_check import check_lengths, with_prompt_room
from launch.processes import free_port
from launch.records import Records
from launch.run_folder import RunFolder, open_run_folder
from launch.train import check_held_out, records_elsewhere, train
from launch.vitals import Vitals
from rollout.chat import ChatTokenizer
from rollout.environment import make_environment
from shared.config import Config
from shared.config_file import load_config
from shared.episodes import Task
from shared.errors import ConfigError, EngineError, PlacementError

CHAT = CharacterChat()


def configured(folder: Path, **overrides: object) -> Config:
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    settings = {
        "model.path": folder,
        "environment.prompts": "short",
        "environment.max_prime": 101,
        "selfplay.seed_problems_per_task": 30,
    }
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(None, [f"--{key}={value}" for key, value in settings.items()])


def test_every_stage_has_its_own_seeds_and_the_first_those_of_a_run_without_stages(tmp_path):
    config = configured(tmp_path, environment__curriculum=[[4, 31], [9, 53]])
    environment = make_environment(config.environment)
    stages = seed_stages(environment, config)
    assert [stage.batch for stage in stages] == [0, 4, 9]
    for stage, largest in zip(stages, (31, 53, 101), strict=True):
        assert {task: len(problems) for task, problems in stage.problems.items()} == dict.fromkeys(Task, 30)
        primes = [int(problem.answer) for problem in stage.problems[Task.INDUCTION]]
        assert largest / 2 < max(primes) <= largest
    first = {task: random.Random(f"seeds {config.run.seed} {task}") for task in Task}
    assert stages[0].problems == {
        task: environment.seed_problems(task, 30, rng, batch=0) for task, rng in first.items()
    }
    assert seed_stages(environment, config) == stages
    other = configured(tmp_path, environment__curriculum=[[4, 31], [9, 53]], run__seed=1)
    assert all(a.problems != b.problems for a, b in zip(stages, seed_stages(environment, other), strict=True))


def longest_prompts(config: Config) -> tuple[int, int]:
    """Characters of the longest solver's and proposer's prompts, by brute force over all problems of a small range."""
    environment = make_environment(config.environment)
    solver, proposer = 0, 0
    for task in Task:
        problems = environment.seed_problems(task, 10**6, random.Random(0), batch=10**6)
        lengths = sorted((len(environment.solver_prompt(p)), p.key, p) for p in problems)
        references = [p for *_, p in lengths[-config.selfplay.references :]]
        solver = max(solver, lengths[-1][0])
        proposer = max(proposer, len(environment.proposer_prompt(task, references, batch=10**6)))
    return solver, proposer


@pytest.mark.parametrize("references", [1, 6])
def test_the_longest_prompt_of_either_role_must_fit_and_the_error_names_the_key(tmp_path, references):
    few = {"selfplay__references": references, "environment__max_prime": 31}
    solver, proposer = longest_prompts(configured(tmp_path, **few))
    assert solver != proposer

    def check(limit: int) -> None:
        config = configured(tmp_path, sampling__max_prompt_tokens=limit, **few)
        check_lengths(make_environment(config.environment), CHAT, config)

    check(max(solver, proposer))
    role = "solver" if solver > proposer else "proposer"
    with pytest.raises(ConfigError, match=rf"sampling\.max_prompt_tokens=\d+ is too small: \w+: a {role}'s prompt"):
        check(max(solver, proposer) - 1)
    with pytest.raises(ConfigError, match=r"sampling\.max_prompt_tokens"):
        check(min(solver, proposer) - 1)


def test_where_nothing_is_proposed_no_proposer_s_prompt_has_to_fit(tmp_path):
    solver, proposer = longest_prompts(configured(tmp_path, environment__max_prime=31))
    assert solver < proposer
    from_buffer = {"selfplay__proposals_per_task": 0, "selfplay__buffer_problems_per_task": 4}
    config = configured(tmp_path, environment__max_prime=31, sampling__max_prompt_tokens=solver, **from_buffer)
    check_lengths(make_environment(config.environment), CHAT, config)


def test_prompts_that_only_a_later_stage_asks_for_are_checked_too(tmp_path):
    narrow = configured(tmp_path, environment__max_prime=7)
    limit = max(longest_prompts(narrow))
    check = {"sampling__max_prompt_tokens": limit}
    check_lengths(make_environment(narrow.environment), CHAT, configured(tmp_path, environment__max_prime=7, **check))
    staged = configured(tmp_path, environment__curriculum=[[5, 7]], **check)
    with pytest.raises(ConfigError, match=r"sampling\.max_prompt_tokens"):
        check_lengths(make_environment(staged.environment), CHAT, staged)


def test_prompt_and_response_must_fit_what_the_model_reads(tmp_path):
    config = configured(tmp_path, sampling__max_prompt_tokens=4000, sampling__max_response_tokens=97)
    with pytest.raises(ConfigError, match=r"max_response_tokens = 4097.* reads 4096 tokens"):
        check_context(tmp_path, config.sampling)


@pytest.mark.parametrize("prompts", ["short", "instruct"])
def test_room_for_prompts_is_made_as_the_model_needs_it(tmp_path, monkeypatch, prompts):
    """As benchmarks do, which take any model."""
    monkeypatch.setattr(launch.model_check, "check_model_folder", lambda *_, **__: None)
    monkeypatch.setattr(launch.model_check, "check_head_width", lambda *_, **__: None)
    monkeypatch.setattr(ChatTokenizer, "from_folder", lambda _: CHAT)
    config = configured(tmp_path, environment__prompts=prompts, environment__max_prime=31)
    with_room = with_prompt_room(config)
    check_lengths(make_environment(config.environment), CHAT, with_room)
    longest = max(longest_prompts(config))
    assert longest <= with_room.sampling.max_prompt_tokens <= 1.2 * longest + 8
    assert with_prompt_room(config, 99).sampling.max_prompt_tokens == 99
    with pytest.raises(ConfigError, match="reads 4096 tokens at most"):
        with_prompt_room(configured(tmp_path, sampling__max_response_tokens=4090, environment__max_prime=31))


def test_a_share_that_holds_nothing_out_is_refused(tmp_path):
    def check(share: float) -> None:
        config = configured(tmp_path, environment__held_out=share)
        check_held_out(make_environment(config.environment), config)

    check(0)
    check(0.2)
    with pytest.raises(ConfigError, match=r"environment\.held_out=0\.0001 holds no deduction problem out"):
        check(0.0001)


@pytest.mark.parametrize(
    ("settings", "variable", "error", "said"),
    [
        ({}, ("VLLM_ALLOW_INSECURE_SERIALIZATION", "1"), EngineError, "unset it"),
        ({"placement__kind": "cluster"}, ("TMPDIR", "/tmp"), PlacementError, r"needs --placement\.ray_address"),
        ({}, ("TMPDIR", "/tmp/a/folder/too/deep"), ConfigError, "too long a path: .* TMPDIR=/tmp"),
    ],
)
def test_what_no_process_would_start_with_is_an_error_before_anything_is_made(
    tmp_path, monkeypatch, settings, variable, error, said
):
    monkeypatch.setenv(*variable)
    monkeypatch.setattr("tempfile.tempdir", variable[1] if variable[0] == "TMPDIR" else None)
    monkeypatch.setattr(launch.model_check, "check_model_folder", lambda *_, **__: None)
    monkeypatch.setattr(launch.model_check, "check_head_width", lambda *_, **__: None)
    monkeypatch.setattr(launch.train, "check_disk", lambda *_: None)
    monkeypatch.setattr(launch.train, "probe", lambda *_: ())
    monkeypatch.setattr(ChatTokenizer, "from_folder", lambda _: CHAT)
    lengths = {"sampling__max_prompt_tokens": 2000, "sampling__max_response_tokens": 20}
    with pytest.raises(error, match=said):
        train(configured(tmp_path, run__folder=tmp_path / "runs", **lengths, **settings))
    assert not (tmp_path / "runs").exists()


def test_a_port_that_is_taken_is_an_error_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.model_check, "check_model_folder", lambda *_, **__: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = "tcp://{}:{}".format(*taken.getsockname())
        config = configured(tmp_path, stream__endpoint=endpoint, run__folder=tmp_path / "runs")
        with pytest.raises(ConfigError, match=rf"cannot listen at {endpoint}: .*in use.*--stream.endpoint"):
            train(config)
    assert not (tmp_path / "runs").exists()


def test_what_an_earlier_start_left_behind_takes_up_no_room_and_no_port_when_that_is_checked(tmp_path, monkeypatch):
    """Of a start whose reaper was killed, too."""
    port = free_port()
    run_folder, private = tmp_path / "runs/run", tmp_path / "primezero-left"
    config = configured(tmp_path, stream__endpoint=f"tcp://127.0.0.1:{port}", run__folder=tmp_path / "runs")
    with open_run_folder(config):
        Leftovers.of(private).write(run_folder / "leftovers.json")
    code = f"import socket; s = socket.create_server(('127.0.0.1', {port})); print(flush=True); input()"
    mark = os.environ | {"PRIMEZERO_PROCESS": f"{private}/learner-0"}
    left = subprocess.Popen([sys.executable, "-c", code], env=mark, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    left.stdout.readline()
    monkeypatch.setattr(launch.model_check, "check_model_folder", lambda *_, **__: None)
    monkeypatch.setattr(launch.model_check, "check_head_width", lambda *_, **__: None)
    monkeypatch.setattr(ChatTokenizer, "from_folder", lambda _: pytest.fail("came as far as that"))
    try:
        with pytest.raises(pytest.fail.Exception, match="as far as that"):
            train(config)
    finally:
        left.communicate()
    assert left.returncode == -signal.SIGKILL


def test_a_fault_of_the_monitor_is_said_however_little_the_run_shows(tmp_path, capsys):
    settings = ["--run.display=quiet", "--tracking.names=[]", f"--monitor.port={free_port()}"]
    run_folder = RunFolder(tmp_path, None, 0)
    with records_elsewhere(load_config(None, settings), run_folder, Records(tmp_path, 0), Vitals([])) as [monitor]:
        monitor.step([])
    assert "the monitor has failed and is off from here on" in capsys.readouterr().err
