"""Child processes of an experiment: logged to a file, and never left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch.model_recipe import ROOT
from shared.processes import signal_at_parents_death

_GOODBYE_S = 60.0
_GIT_S = 60.0
# What a commit has to hold for a run to be the same again.
_CODE = ("shared", "rollout", "learner", "launch", "pyproject.toml")


def primezero(arguments: Sequence[str], log: Path) -> int:
    """Run `primezero` with these arguments in the repository's root, all it says going to `log`; its exit code."""
    return run_logged([str(Path(sys.executable).with_name("primezero")), *arguments], log)


def run_logged(command: Sequence[str], log: Path) -> int:
    """Run a command in the repository's root; its exit code. However this ends, the command has ended too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                _end(child)


@contextlib.contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that children are ended."""

    def unwind(signum: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + signum)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def code_version(root: Path = ROOT) -> str:
    """The commit that is checked out, with "+changes" where its code has been changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        asked = subprocess.run(
            command, cwd=root, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=_GIT_S
        )
        return asked.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *_CODE)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown: not a git checkout"


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_GOODBYE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _die_with_parent() -> None:
    # A runner that is killed outright must not leave a run going: the next start would train beside it.
    signal_at_parents_death(signal.SIGTERM)
