"""The commands that --help and the documents show, and a folder where they find what they name."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from recorded_runs import WrittenJournal, text_ticket, write_journal, write_records

from launch.cli import _parser
from launch.completion import all_commands
from shared.episodes import Task, Verdict

ROOT = Path(__file__).parents[1]
COMMANDS = {name: parser for name, parser in all_commands(_parser()).items() if name not in ("", "bench")}
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


def examples(text: str) -> list[str]:
    """The primezero commands in a text, each on a line of its own but for continuations."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^(?: *|examples?: )(primezero (?!COMMAND)[^\n]*)", joined, re.MULTILINE)
    return [re.sub(r"(\s+#|\s+>|\s+\|).*", "", line) for line in found]


def all_examples() -> list[str]:
    """Those of the command itself, of each command's --help, and of the documents, in this order, each once."""
    helps = [_parser().epilog, *(parser.epilog for parser in COMMANDS.values())]
    blocks = (
        block
        for name in DOCUMENTS
        for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    )
    return list(dict.fromkeys(line for text in (*helps, *blocks) for line in examples(text or "")))


def make_place(folder: Path, format_model: Path) -> None:
    """Runs with records and a model, and model folders, under the names that examples give them."""
    settings = {"model.path": format_model, "environment.prompts": "short"}
    for name in ("mine", "other"):
        run = write_records(folder / "runs" / name, 32, **settings)
        write_journal(run, 31)
        journal = WrittenJournal(run)
        hard = text_ticket(31, 0, task=Task.INDUCTION, answers=("5", "4", "4", "4"))
        journal.train(31, hard, text_ticket(31, 1, verdict=Verdict.UNPARSABLE))
        journal.close()
        shutil.copytree(format_model, run / "model", dirs_exist_ok=True)
        (run / "summary.json").write_text(json.dumps({"steps": 32}))
    for name in ("tiny", "tiny-0", "mine", "some-instruct-model"):
        shutil.copytree(format_model, folder / "models" / name)
    os.symlink(ROOT / "launch", folder / "launch")


def run_example(line: str, folder: Path, *, typed: str = "") -> str:
    """Run a command in `folder` as a user would, with `typed` as its input; it must end well. What it printed."""
    finished = subprocess.run(
        [sys.executable, "-m", "launch.cli", *shlex.split(line)[1:]],
        cwd=folder,
        input=typed,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode == 0, f"{line}: {finished.stdout[-1000:]}{finished.stderr[-2000:]}"
    return finished.stdout
