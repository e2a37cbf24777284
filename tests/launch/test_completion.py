import subprocess
from pathlib import Path

import pytest

from launch.cli import _CONFIGURED, _PLAIN, _parser, main
from launch.completion import SHELLS, all_commands


@pytest.fixture(scope="module")
def bash(tmp_path_factory) -> Path:
    """The script, as printed."""
    import contextlib
    import io

    path = tmp_path_factory.mktemp("completion") / "script"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["completion", "bash"]) == 0
    path.write_text(printed.getvalue())
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash would offer for the last of the words."""
    line = " ".join(f"'{word}'" for word in ("primezero", *words))
    state = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}"
    code = f"source {script}; {state}; _shtab_primezero; printf '%s\\n' ${{COMPREPLY[@]}}"
    finished = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


def test_bash_completes_commands_options_and_configuration_keys(bash):
    assert completed(bash, "ins") == {"inspect"}
    assert {"train", "report", "play", "doctor"} <= completed(bash, "")
    assert completed(bash, "inspect", "--min") == {"--min-reward"}
    assert completed(bash, "train", "--learner.trust_region.clip_") == {
        "--learner.trust_region.clip_low",
        "--learner.trust_region.clip_high",
    }
    assert "rollout" in completed(bash, "bench", "")
    assert completed(bash, "inspect", "--learner.l") == set()


def test_bash_completes_choices_and_folders(bash, tmp_path):
    (tmp_path / "mine").mkdir()
    assert completed(bash, "inspect", "runs/mine", "--task", "ab") == {"abduction"}
    assert completed(bash, "report", f"{tmp_path}/mi") == {f"{tmp_path}/mine"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_with_the_keys(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "inspect" in out
    assert "learner.lr" in out


def test_every_command_either_takes_configuration_keys_or_refuses_them():
    commands = {name for name in all_commands(_parser()) if name and " " not in name}
    assert commands == {*_CONFIGURED, *_PLAIN, "bench"}


@pytest.mark.parametrize("command", [["audit", "runs/mine"], ["report", "runs/mine"], ["completion", "bash"]])
def test_a_command_without_configuration_refuses_a_key(command, capsys):
    assert main([*command, "--learner.lr", "1"]) == 1
    assert f"--learner.lr: `primezero {command[0]}` has no configuration" in capsys.readouterr().err
