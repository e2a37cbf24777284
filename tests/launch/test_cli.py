import fcntl
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from model_files import make_model_folder

from launch.cli import main
from launch.run_folder import LOCK_FILE
from learner.journal import Began, Dropped, Journal, Released, Took
from shared.episodes import TicketId

ROOT = Path(__file__).parents[2]


def test_an_unknown_key_fails_before_anything_starts_naming_it(capsys, tmp_path):
    assert main(["train", "--run.folder", str(tmp_path), "--learner.lrr", "1"]) == 1
    assert "learner.lrr: unknown key" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_folder_says_how_to_make_one(capsys, tmp_path):
    assert main(["train", "--run.folder", str(tmp_path), "--model.path", str(tmp_path / "none")]) == 1
    assert "primezero init-model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_model_folder_says_what_is_missing(capsys, tmp_path, missing):
    (make_model_folder(tmp_path) / missing).unlink()
    assert main(["train", "--run.folder", str(tmp_path), "--model.path", str(tmp_path)]) == 1
    assert missing.removeprefix("model") in capsys.readouterr().err


def test_an_audit_tells_what_became_of_every_ticket(capsys, tmp_path):
    assert main(["audit", str(tmp_path / "none")]) == 1
    assert "none does not exist: name the folder of a run" in capsys.readouterr().err
    assert main(["audit", str(tmp_path)]) == 1
    assert "has no journal" in capsys.readouterr().err
    journal = Journal(tmp_path / "journal")
    journal.append(Began(0, 0))
    positions = [journal.append(Took(TicketId(0, 0, index), 1, "rollout-0", 0, ())) for index in range(3)]
    journal.append(Dropped(positions[2], "rolled_back"))
    journal.append(Released(0, 0, tuple(positions[:2])))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert main(["audit", str(tmp_path)]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["acknowledged"], shown["trained"], shown["dropped"]) == ("3", "2", "rolled_back 1")
    journal.append(Took(TicketId(0, 0, 4), 1, "rollout-0", 0, ()))
    assert main(["audit", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("has 1 acknowledged tickets that are lost\n")
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 2}\n{"st')
    with (tmp_path / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["audit", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith(
        "are lost, 1 steps that the journal or metrics.jsonl has, but not both; it is still going: audit it once it "
        "has ended\n"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from launch.tiny_model import TinyModelSettings, make_tiny_model
    from shared.config import EnvironmentConfig

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(folder, EnvironmentConfig(), settings=TinyModelSettings(steps=1, batch=2), seed=0)
    return folder


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--sampling.max_response_tokens", "4000"], "reads 512 tokens at most"),
        (["--sampling.max_response_tokens", "12", "--sampling.max_prompt_tokens", "20"], "max_prompt_tokens=20 is too"),
    ],
)
def test_prompts_that_cannot_fit_are_refused_before_anything_starts(capsys, tmp_path, model, overrides, said):
    assert main(["train", "--run.folder", str(tmp_path), "--model.path", str(model), *overrides]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_resume_without_a_run_to_resume_begins_none(capsys, tmp_path, model):
    settings = ["--run.folder", str(tmp_path / "runs"), "--model.path", str(model)]
    fitting = ["--sampling.max_response_tokens", "12", "--sampling.max_prompt_tokens", "500"]
    assert main(["train", "--resume", *settings, *fitting]) == 1
    assert "leave --resume out to begin one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_config_lists_every_key_with_a_word_on_it(capsys):
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("--learner.lr ") and "AdamW" in line for line in lines)


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("train", "eval", "init-model", "config"))


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["config"]])
def test_help_loads_no_heavy_library(arguments):
    code = f"""
import sys
from launch.cli import main
from launch.run_folder import LOCK_FILE
try:
    main({arguments})
except SystemExit:
    pass
heavy = {{"torch", "vllm", "transformers", "deepspeed", "ray"}} & sys.modules.keys()
sys.exit(f"loaded: {{heavy}}" if heavy else 0)
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_evaluation_needs_neither_ray_nor_deepspeed_nor_an_engine_to_be_imported():
    code = """
import sys
import launch.evaluate
sys.exit(str({"torch", "vllm", "deepspeed", "ray"} & sys.modules.keys() or "") or 0)
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_eval_help_shows_how_to_call_it(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    out = capsys.readouterr().out
    assert "primezero eval runs/mine/model --baseline-model" in out
    assert max(map(len, out.splitlines())) <= 100


def test_ctrl_c_ends_a_command_without_a_traceback(capsys, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.tiny_model.make_tiny_model", interrupted)
    assert main(["init-model", str(tmp_path / "tiny")]) == 130
    assert capsys.readouterr().err == "primezero: interrupted\n"


def run(*words: str, shell: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell; `shell`: where its output goes."""
    command = f"{shlex.join([sys.executable, '-m', 'launch.cli', *words])} {shell}"
    env = os.environ | environment
    return subprocess.run(
        command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_output_that_finds_no_room_is_an_error_of_the_disk():
    done = run("config", shell="> /dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        "primezero: DiskError: cannot write what there is to say: No space left on device; make room there\n"
    )


def test_a_command_whose_output_is_closed_does_its_work():
    done = run("config", "--learner.lr", "1", shell=">&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_one_may_not_look_into_is_an_error_that_names_it(tmp_path):
    """Whoever runs the tests: the root user may look everywhere, so it becomes somebody else."""
    (tmp_path / "theirs").mkdir(mode=0)
    code = """
import os, sys
import launch.cli, launch.run_folder, learner.audit
audit = launch.cli._audit
launch.cli._audit = lambda *given: (os.geteuid() or os.seteuid(65534)) or audit(*given)
sys.exit(launch.cli.main(["audit", sys.argv[1]]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "theirs/run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"primezero: ConfigError: cannot use \S+/theirs/run/\S+: Permission denied; .*\n", done.stderr)


def test_a_full_disk_is_said_where_the_output_is_closed_too():
    code = "from launch.cli import main; main(['report', 'a'])"
    full = "import launch.report.command as c; c._runs = lambda _: open('/dev/full', 'w').write('x' * 10**6)"
    command = f"{shlex.join([sys.executable, '-c', f'{full}; {code}'])} >&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.startswith("primezero: DiskError: cannot write")


@pytest.mark.usefixtures("capfd")
def test_a_broken_pipe_that_is_not_its_own_output_is_not_taken_for_a_reader_that_has_seen_enough(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("launch.tiny_model.make_tiny_model", broken)
    with pytest.raises(BrokenPipeError):
        main(["init-model", str(tmp_path / "tiny")])


def test_an_error_is_folded_between_words_on_a_terminal_alone(tmp_path, capsys, monkeypatch):
    def said() -> list[str]:
        assert main(["report", str(tmp_path / "none")]) == 1
        return capsys.readouterr().err.splitlines()

    monkeypatch.setenv("COLUMNS", "60")
    (whole,) = said()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    lines = said()
    assert len(lines) > 1
    assert " ".join(lines) == whole
    assert all(len(line) <= 60 or " " not in line for line in lines)
