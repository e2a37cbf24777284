import hashlib
import json
import math
import random
import re
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from launch import tiny_model
from launch.tiny_model import TinyModelSettings, greedy_accuracy, make_tiny_model
from rollout.chat import ChatTokenizer
from rollout.environment import make_environment
from shared.config import EnvironmentConfig
from shared.episodes import Role, Task
from shared.errors import ConfigError, ModelFolderError

ENVIRONMENT = EnvironmentConfig(prompts="short")
SMALL = TinyModelSettings(hidden=16, layers=1, intermediate=16, steps=3, batch=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "deeper" / "tiny"
    return folder, make_tiny_model(folder, ENVIRONMENT, settings=SMALL, seed=7)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(made, tmp_path):
    import torch

    folder, report = made
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = make_tiny_model(tmp_path / "again", ENVIRONMENT, settings=SMALL, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert hashes(tmp_path / "again") == hashes(folder)
    assert replace(again, seconds=0) == replace(report, seconds=0)
    make_tiny_model(tmp_path / "other", ENVIRONMENT, settings=SMALL, seed=8)
    differing = {name for name, value in hashes(tmp_path / "other").items() if value != hashes(folder)[name]}
    assert differing == {"model.safetensors"}


def test_the_folder_loads_like_any_hugging_face_model(made):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, report = made
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.num_parameters() == report.parameters
    assert model.config.vocab_size == len(tokenizer) == report.vocabulary
    assert model.config.tie_word_embeddings
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert config.bos_token_id is None


def test_the_generation_config_sets_nothing_about_sampling(made):
    written = json.loads((made[0] / "generation_config.json").read_text())
    assert set(written) == {"eos_token_id", "pad_token_id", "transformers_version"}


def test_the_folder_says_what_it_is_and_everyone_may_read_it(made):
    assert "stands in for an Instruct model" in (made[0] / "README.md").read_text()
    assert made[0].stat().st_mode & stat.S_IROTH
    assert all(path.stat().st_mode & stat.S_IROTH for path in made[0].iterdir())


def test_the_default_sizes_give_the_parameters_of_the_design():
    from transformers import Qwen2Config

    settings = TinyModelSettings()
    assert (settings.hidden, settings.layers, settings.heads, settings.kv_heads) == (64, 2, 2, 1)

    class Vocabulary378:
        eos_token_id, pad_token_id = 2, 0

        def __len__(self):
            return 378

    model = tiny_model._new_model(Vocabulary378(), settings)
    assert isinstance(model.config, Qwen2Config)
    assert model.num_parameters() == 147_648


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("bounds", [(2, 13), (11, 97)])
def test_prompts_and_responses_are_short(tmp_path_factory, made, task, bounds):
    config = EnvironmentConfig(prompts="short", min_prime=bounds[0], max_prime=bounds[1])
    folder = made[0]
    if config != ENVIRONMENT:
        folder = tmp_path_factory.mktemp("other") / "tiny"
        make_tiny_model(folder, config, settings=replace(SMALL, steps=0, max_response_tokens=1), seed=0)
    chat, env, rng = ChatTokenizer.from_folder(folder), make_environment(config), random.Random(0)
    # Both bounds and every number may have two digits in the wider range.
    allowance = {Role.SOLVER: 18, Role.PROPOSER: 28 if config == ENVIRONMENT else 32}
    for role, limit in allowance.items():
        rows = [env.demonstration(role, task, rng) for _ in range(300)]
        assert max(len(chat.prompt_ids(row.prompt)) for row in rows) <= limit
        assert max(len(chat.response_ids(row.response)) for row in rows) <= (5 if role is Role.SOLVER else 8)


def test_digits_are_tokens_of_their_own_and_text_survives(made):
    from transformers import AutoTokenizer

    tokenizer, env, rng = AutoTokenizer.from_pretrained(made[0]), make_environment(ENVIRONMENT), random.Random(1)
    assert all(sum(c.isdigit() for c in text) == 0 or len(text) == 1 for text in tokenizer.get_vocab())
    for role in Role:
        for task in Task:
            row = env.demonstration(role, task, rng)
            for text in (row.prompt, row.response, "other words, 2026 ☃"):
                assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_an_existing_folder_is_left_alone(made):
    before = hashes(made[0])
    with pytest.raises(ModelFolderError, match="exists already"):
        make_tiny_model(made[0], ENVIRONMENT, settings=SMALL, seed=1)
    assert hashes(made[0]) == before


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelFolderError, match=r"cannot write the model to .*file/tiny: .*name another folder"):
        make_tiny_model(tmp_path / "file/tiny", ENVIRONMENT, settings=SMALL, seed=0)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"steps": -1}, "--steps -1: it has to be at least 0"),
        ({"layers": 0}, "--layers 0: it has to be at least 1"),
        ({"batch": 0}, "--batch 0: it has to be at least 1"),
        ({"lr": math.nan}, "--lr nan: it has to be more than 0"),
        ({"proposer_share": 1.5}, "--proposer-share 1.5: it has to be from 0 to 1"),
        ({"hidden": 63}, "--hidden 63: it has to be an even number for each of the heads (--heads 2)"),
        ({"kv_heads": 3}, "--kv-heads 3: --heads 2 is no multiple of it"),
    ],
)
def test_sizes_of_which_no_model_can_be_made_are_refused_by_the_option(option, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        TinyModelSettings(**option)


def test_a_model_that_cannot_read_its_own_demonstrations_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--max-positions 10: a demonstration has \d+ tokens"):
        make_tiny_model(tmp_path / "tiny", ENVIRONMENT, settings=replace(SMALL, max_positions=10), seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_leaves_nothing_behind(tmp_path):
    def crash(step, loss):
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        make_tiny_model(tmp_path / "tiny", ENVIRONMENT, settings=SMALL, seed=0, progress=crash)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_the_steps(tmp_path):
    seen = []
    settings = replace(SMALL, max_response_tokens=1)
    make_tiny_model(tmp_path / "tiny", ENVIRONMENT, settings=settings, seed=0, progress=lambda *args: seen.append(args))
    assert [step for step, _ in seen] == [1, 2, 3]


def test_the_report_evaluates_the_saved_folder(made):
    folder, report = made
    assert greedy_accuracy(folder, ENVIRONMENT) == report.evaluation
    assert {task: result.problems for task, result in report.evaluation.tasks.items()} == {
        Task.DEDUCTION: 35,
        Task.ABDUCTION: 35,
        Task.INDUCTION: 29,
    }


def test_importing_the_module_does_not_load_torch():
    code = "import sys, launch.tiny_model; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0


@pytest.mark.integration
@pytest.mark.slow
def test_the_default_warm_start_teaches_the_format_and_little_more(tmp_path):
    report = make_tiny_model(tmp_path / "tiny", ENVIRONMENT, settings=TinyModelSettings(), seed=0)
    tasks = report.evaluation.tasks.values()
    assert 0.25 <= report.evaluation.accuracy <= 0.45
    assert sum(task.unparsable for task in tasks) / len(tasks) <= 0.02
