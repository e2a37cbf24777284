"""Odd model folders: taken by `doctor`, `train` and `eval`, and then by engine, learner and export, or refused by all.

Refused is before anything starts, with the same line.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from model_files import engine_files
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import launch.evaluate
import launch.model_check
import launch.train
from launch.doctor.findings import Status
from launch.doctor.places import check_model
from launch.evaluate import evaluate_models
from launch.tiny_model import TinyModelSettings, make_tiny_model
from launch.train import train
from learner.packed_model import load_model
from rollout.chat import ChatTokenizer
from rollout.environment import make_environment
from shared.config import Config, EnvironmentConfig
from shared.config_file import load_config
from shared.errors import ModelFolderError
from shared.model_folder import stop_tokens
from shared.weight_files import INDEX, SINGLE, stored_tensors

ROOT = Path(__file__).parents[2]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
USER = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Odd:
    """change: what makes a plain folder odd; refused: what is said of it, a pattern; none: it is taken"""

    change: Callable[[Path], None]
    refused: str | None = None


def edit(file: str, refused: str | None = None, **changes: object) -> Odd:
    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(content | changes), encoding="utf-8")

    return Odd(change, refused)


def config(refused: str | None = None, **changes: object) -> Odd:
    return edit("config.json", refused, **changes)


def generation(refused: str | None = None, **changes: object) -> Odd:
    return edit("generation_config.json", refused, **changes)


def template(text: str, refused: str | None = None) -> Odd:
    return Odd(lambda folder: (folder / "chat_template.jinja").write_text(text, encoding="utf-8"), refused)


def file(name: str, text: str, refused: str | None = None) -> Odd:
    return Odd(lambda folder: (folder / name).write_text(text, encoding="utf-8"), refused)


def weights(change: Callable[[dict[str, torch.Tensor]], None], refused: str | None = None, **keys: object) -> Odd:
    """Other tensors, and keys of config.json."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        change(tensors)
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        config(**keys).change(folder)

    return Odd(changed, refused)


def shards(*, index: bool = True, single: bool = False, beside: str = "", refused: str | None = None) -> Odd:
    """In two files; beside: another that no index names."""

    def split(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        places = {name: f"model-0000{1 + (name != EMBEDDING)}-of-00002.safetensors" for name in tensors}
        for shard in set(places.values()):
            named = {name: tensors[name] for name, place in places.items() if place == shard}
            save_file(named, folder / shard, metadata={"format": "pt"})
        if index:
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
        if not single:
            (folder / SINGLE).unlink()
        if beside:
            save_file({"lora": torch.zeros(1)}, folder / beside)

    return Odd(split, refused)


def head_too(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def other_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING] + 1


def adapter_in_it(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(1, 64)


def adapter_beside(folder: Path) -> None:
    save_file({"lora": torch.zeros(1)}, folder / "adapter_model.safetensors")


def more_special_tokens(folder: Path) -> None:
    config(vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"] + 8).change(folder)
    tensors = load_file(folder / SINGLE)
    tensors[EMBEDDING] = torch.cat([tensors[EMBEDDING], torch.zeros(8, tensors[EMBEDDING].shape[1])])
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    special = ["<|im_start|>", "<answer>", "</answer>"]
    edit("tokenizer_config.json", extra_special_tokens=special).change(folder)


FOLDERS = {
    "plain": Odd(lambda _: None),
    # weights
    "sharded": shards(),
    "sharded without an index": shards(index=False, refused="neither model.safetensors nor"),
    "sharded, and whole": shards(single=True, refused="the learner would load the one"),
    "sharded, with an adapter": shards(beside="adapter_model.safetensors"),
    "sharded, with a consolidated file": shards(beside="consolidated.safetensors"),
    "whole, with an adapter": Odd(adapter_beside, "adapter_model.safetensors beside model.safetensors"),
    "whole, with an adapter's tensors": weights(adapter_in_it, "1 are too many, among them .*lora_A"),
    "tied, with its head": weights(head_too),
    "tied, with another head": weights(other_head, "lm_head.weight is another"),
    "untied, with its head": weights(other_head, tie_word_embeddings=False),
    "untied, without a head": config("1 are missing, among them lm_head.weight", tie_word_embeddings=False),
    "a layer too few": weights(lambda t: t.pop("model.layers.0.mlp.up_proj.weight"), "1 are missing, among them"),
    "weights of other formats beside": file("pytorch_model.bin", "x"),
    # ids
    "padding beyond the vocabulary": config(pad_token_id=10**6),
    "padding far below 0": config(pad_token_id=-100),
    "padding by -1": config(pad_token_id=-1),
    "padding by name": config("pad_token_id", pad_token_id="<pad>"),
    "an end in a list in a list": config("got `array`", eos_token_id=[[2, 0]]),
    "an end beyond the vocabulary": config("ends completions by token 1000000", eos_token_id=10**6),
    "no ends but the tokenizer's": config(eos_token_id=None),
    "added tokens that are null": edit("tokenizer.json", "got `null`", added_tokens=None),
    "answers in special tokens": Odd(more_special_tokens),
    # generation defaults
    "sampling without sampling": generation(do_sample=False, temperature=0.6, top_p=0.9),
    "two ends": generation(eos_token_id=[2, 5]),
    "padding of generation by -1": generation(pad_token_id=-1),
    "generation that no library loads": generation(max_new_tokens=0, cache_implementation="none of these"),
    "generation by a list": file("generation_config.json", "[]", "is not a JSON object"),
    "ends of generation in a list in a list": generation("got `array`", eos_token_id=[[2, 0]]),
    # configuration
    "attentions asked for": config(output_attentions=True),
    "sampling in the configuration": config(temperature=0.6, do_sample=False),
    "another model's type": config("does not go with the rest", model_type="llama"),
    "a label list": config("config.json is refused: AttributeError", id2label=[1]),
    "a rope of no kind": config("config.json is refused: KeyError", rope_parameters={"rope_type": "llama3"}),
    "heads that the engine has no kernel for": config("have 16 numbers", num_attention_heads=4, num_key_value_heads=2),
    "sizes as text": config("Expected `int`, got `str`", hidden_size="8"),
    "code of its own": config("auto_map", auto_map={"AutoModelForCausalLM": "modeling.Mine"}),
    # templates
    "a template for contents in parts": template(
        "{% for part in messages[0].content %}{{ part.text }}{% endfor %}<|im_start|>", "would not be shown"
    ),
    "a template that cuts": template("<|im_start|>{{ messages[0].content[:9] }}", "would not be shown"),
    "a template that raises": template("{{ raise_exception('no') }}", "cannot be used: .*no"),
    "a template that raises for longer contents": template(
        "{{ raise_exception('too long') if messages[0].content | length > 4 else 'a' }}", "cannot be used: .*too long"
    ),
    "a template of another language": template("{% for", "cannot be used"),
    "a template that strips": template(USER.replace("content", "content | trim")),
    "a template that tells the day": template("{{ strftime_now('%d %b %Y') }}" + USER),
    "no template": Odd(lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix") / "plain"
    settings = TinyModelSettings(layers=1, steps=0, max_response_tokens=1)
    make_tiny_model(folder, EnvironmentConfig(prompts="short"), settings=settings, seed=0)
    return folder


@pytest.fixture
def folder(request, plain, tmp_path) -> Path:
    made = shutil.copytree(plain, tmp_path / "model")
    FOLDERS[request.param].change(made)
    return made


def of_model(folder: Path) -> Config:
    settings = {
        "model.path": folder,
        "model.dtype": "float32",
        "run.folder": folder.parent / "runs",
        "environment.prompts": "short",
        "environment.evaluation_problems_per_task": 2,
        "sampling.max_prompt_tokens": 192,
        "sampling.max_response_tokens": 12,
        "tracking.names": "[]",
        "placement.device": "cpu",
    }
    return load_config(None, [f"--{key}={value}" for key, value in settings.items()])


class StartedError(Exception):
    """All checks have passed."""


@pytest.fixture
def nothing_starts(monkeypatch) -> None:
    def start(*_, **__):
        raise StartedError

    monkeypatch.setattr(launch.train, "open_run_folder", start)
    monkeypatch.setattr(launch.evaluate.Engine, "start", start)
    monkeypatch.setattr(launch.model_check, "LENGTH_SAMPLES", 5)


# Importing the library's models, which alone reads these, takes longer than all else that a launcher does.
LIBRARYS = ("a label list", "a rope of no kind")


def outcome(of: Callable[[], object]) -> str | None:
    """What a folder is refused with; None where it is taken."""
    try:
        of()
    except StartedError:
        return None
    except ModelFolderError as error:
        return str(error)
    raise AssertionError("nothing was started")


@pytest.mark.parametrize("folder", LIBRARYS, indirect=True)
def test_what_only_the_library_of_models_objects_to_is_refused_by_doctor_and_by_the_learner(folder, request):
    (finding,) = check_model(of_model(folder), named=True)
    assert finding.status is Status.FAIL
    assert re.search(FOLDERS[request.node.callspec.params["folder"]].refused, finding.advice)
    with pytest.raises(ModelFolderError, match=str(folder)):
        load_model(folder, "float32")


@pytest.mark.parametrize(
    "folder", [name for name, odd in FOLDERS.items() if odd.refused and name not in LIBRARYS], indirect=True
)
def test_a_folder_is_refused_by_all_with_one_line(folder, request, nothing_starts):
    config = of_model(folder)
    said = outcome(lambda: train(config))
    assert said is not None
    assert "\n" not in said
    assert str(folder) in said
    assert re.search(FOLDERS[request.node.callspec.params["folder"]].refused, said)
    (finding,) = check_model(config, named=True)
    assert (finding.status, finding.advice) == (Status.FAIL, said)
    assert outcome(lambda: evaluate_models(config, folder)) == said
    assert not config.run.folder.exists()


@pytest.mark.parametrize("folder", [name for name, odd in FOLDERS.items() if not odd.refused], indirect=True)
def test_a_folder_that_is_taken_can_be_trained_and_written(folder, nothing_starts, tmp_path):
    config = of_model(folder)
    assert Status.FAIL not in {finding.status for finding in check_model(config, named=True)}
    assert outcome(lambda: train(config)) is outcome(lambda: evaluate_models(config, folder)) is None
    # The tokenizer: what is asked arrives, and whatever the engine stops at is not in the text.
    chat, environment = ChatTokenizer.from_folder(folder), make_environment(config.environment)
    problem = environment.evaluation_problems("deduction", 1, 0)[0]
    asked = chat.decode(chat.prompt_ids(environment.solver_prompt(problem)))
    assert "".join(environment.solver_prompt(problem).split()) in "".join(asked.split())
    for stop in stop_tokens(folder):
        assert chat.decode([*chat.response_ids("<answer>7</answer>")[:-1], stop]) == "<answer>7</answer>"
    # The weights: those that the engine and the learner load are those that were checked.
    checked = set(stored_tensors(folder))
    assert held_by(engine_files(folder)) == checked
    model = load_model(folder, "float32")
    assert {name for name, _ in model.named_parameters()} == checked - (
        {HEAD} if model.config.tie_word_embeddings else set()
    )
    # The run's end.
    model.save_pretrained(tmp_path / "written")
    for file in folder.glob("*token*"):
        shutil.copy(file, tmp_path / "written")
    load_model(tmp_path / "written", "float32")


def held_by(files: list[Path]) -> set[str]:
    names: set[str] = set()
    for path in files:
        with safe_open(path, "pt") as held:
            names |= set(held.keys())
    return names


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("folder", [name for name, odd in FOLDERS.items() if not odd.refused], indirect=True)
def test_a_folder_that_is_taken_trains_two_steps_and_exports(folder, tmp_path):
    small = "--selfplay.proposals_per_task 4 --selfplay.buffer_problems_per_task 2 --run.final_evaluations 1"
    settings = f"--run.steps 2 --environment.evaluation_problems_per_task 8 --run.display plain {small}".split()
    run = ["--model.path", str(folder), "--run.folder", str(tmp_path / "runs"), "--run.name", "odd"]
    primezero("train", "--config", "launch/configs/cpu_demo.toml", *settings, *run)
    for step in ([], ["--step", "2"]):
        out = tmp_path / f"out{len(step)}"
        primezero("export", str(tmp_path / "runs/odd"), str(out), *step)
        load_model(out, "float32")


def primezero(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from launch.entry import main; raise SystemExit(main())", *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
