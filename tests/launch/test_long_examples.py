"""Every command that --help and the documents show and that starts engines, trains or measures, in a quick form.

As printed, but for the sizes that come behind it. tests/launch/test_examples.py has the others, and the README's.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from printed_examples import all_examples, make_place, run_example

from launch.processes import free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

# The models here are tiny.
TINY = "--environment.prompts short --sampling.max_prompt_tokens 256 --sampling.max_response_tokens 32"
# What each needs to be short, and what it says when it has done its work.
SHORTER = {
    "init-model": ("--steps 1", "parameters"),
    "train": ("--run.steps 2 --run.evaluate_every 2 --run.final_evaluations 1 --run.checkpoint_every 1", "2 steps"),
    "eval": (f"--problems 4 {TINY}", "greedy"),
    "play": (TINY, "log-probability"),
    "bench rollout": (
        "--model tiny --vocabulary 600 --proposals-per-task 3 --buffer-problems-per-task 2 --attempts 2 "
        "--response-tokens 5 --rounds 1 --max-sequences 8 --max-open-tickets 10",
        "worker_vs_engine",
    ),
    "bench learner": (
        "--model tiny --vocabulary 64 --rounds 1 --rows 12 --prompt-tokens 6 --response-tokens 10 --padded-rows 2 "
        "--merged-rows 12 --merged-distinct 4 --shared-prompts 3 --memory-model tiny --memory-rows 4 "
        "--memory-large-vocabulary 4096",
        "vs_bare",
    ),
    "bench wire": (
        "--tickets 12 --tiny-tickets 24 --attempts 3 --prompt-tokens 8 --response-tokens 40 --rounds 1",
        "vs_raw_zmq",
    ),
    "bench sync": (
        "--model tiny --vocabulary 64 --syncs 1 --requests 4 --prompt-tokens 8 --steady-steps 4 --steady-s 0.1",
        "pause",
    ),
    "bench e2e": (
        "--model tiny --vocabulary 600 --prompts 3 --completions 2 --response-tokens 8 --rounds 1",
        "benchmark e2e",
    ),
    "bench soak": ("--minutes 0.5 --baseline-minute 0.1 --window-minutes 0.1 --interval-s 1", "restarts"),
    "bench chaos": ("--steps 60 --hits 1 --stopped-s 2", "tickets"),
}
NEEDS_A_GPU = "primezero train --config launch/configs/single_a100.toml"


def kind(line: str) -> str:
    words = line.split()
    return " ".join(words[1:3] if words[1] == "bench" else words[1:2])


def quick(line: str) -> str:
    """What the line says itself last still counts."""
    return f"{line} {SHORTER[kind(line)][0]}"


@pytest.mark.parametrize(
    "line", [line for line in all_examples() if kind(line) in SHORTER and not line.startswith(NEEDS_A_GPU)]
)
def test_it_runs_in_a_quick_form(line: str, tmp_path: Path, format_model: Path):
    make_place(tmp_path, format_model)
    if kind(line) == "init-model":
        shutil.rmtree(tmp_path / "models")
    port = f"--port {free_port()}" if kind(line) == "bench wire" else ""
    commands = [quick(line)]
    if kind(line) == "train":
        shutil.rmtree(tmp_path / "runs")
        if line.endswith(" --resume"):
            commands.insert(0, quick(line.removesuffix("--resume")) + " --run.steps 1")
        [model] = re.findall(r"--model\.path (\S+)", line)
        if not (tmp_path / model).exists():
            [made] = [each for each in all_examples() if each.startswith(f"primezero init-model {model} ")]
            commands.insert(0, quick(made))
    for command in commands:
        printed = run_example(f"{command} {port}", tmp_path, typed="p=13 x=7\n")
    assert SHORTER[kind(line)][1] in printed
