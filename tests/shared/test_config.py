import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.config import Config
from shared.config_file import dump_toml, known_keys, load_config
from shared.errors import ConfigError

CONFIGS = sorted(Path(__file__).parents[2].glob("launch/configs/*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configurations_load(path):
    assert load_config(path).run.name == path.stem


def test_resolved_tree_reads_back_equal(tmp_path):
    changes = {
        "learner.solver_row_weight": "none",
        "learner.betas": "[0.8, 0.9]",
        "learner.reference_model": "models/other",
        "environment.max_prime": "31",
        "environment.curriculum": "[[10, 5], [20, 7]]",
    }
    config = load_config(CONFIGS[0], [f"--{key}={value}" for key, value in changes.items()])
    assert config.environment.curriculum == ((10, 5), (20, 7))
    (tmp_path / "config.toml").write_text(dump_toml(config))
    assert load_config(tmp_path / "config.toml") == config


def test_command_line_beats_file_beats_default(tmp_path):
    (tmp_path / "c.toml").write_text("[learner]\nlr = 1e-4\nranks = 2\n")
    overrides = ["--learner.lr", "2e-6", "--learner.zero_stage", "3", "--run.overwrite=true"]
    config = load_config(tmp_path / "c.toml", overrides)
    learner = config.learner
    assert (learner.lr, learner.ranks, learner.zero_stage, config.run.overwrite) == (2e-6, 2, 3, True)
    assert config.learner.threads == Config().learner.threads


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["--learner.lrr", "1"], "learner.lrr: unknown key; do you mean learner.lr?"),
        (["--leaner.lr", "1"], "leaner: unknown key; do you mean learner?"),
        (["--rollout.lr", "1"], "rollout.lr: unknown key; do you mean learner.lr?"),
        (["--learner.x", "1"], "learner.x: unknown key; `primezero config` lists all keys$"),
        (["--run.time-limit-s", "1"], "run.time-limit-s: unknown key; do you mean run.time_limit_s?"),
        (["--learner.lr", "--run.steps", "1"], "the override --learner.lr has no value"),
        (["--learner.betas", "0.9"], "learner.betas: a list is written as in [0.9, 0.95]"),
        (["--learner.betas", "[0.9]"], "learner.betas.1: the list lacks a value there (found [0.9])"),
        (["--tracking.names", "[wandb]"], "tracking.names: '[wandb]' is no list: a list is written as in"),
        (["--learner=3"], "learner: a section, which holds keys: [learner] in TOML (found '3')"),
        (["--learner.lr", "fast"], "learner.lr"),
        (["--learner.lr", "nan"], "learner.lr"),
        (["--learner.lr", "-1"], "learner.lr"),
        (["--learner", "3"], "learner"),
        (["--learner.lr"], "learner.lr"),
        (["--learner.betas", "[1"], "learner.betas"),
        (["--learner.lr.x", "1"], "learner.lr"),
        (["--learner.zero_stage", "4"], "learner.zero_stage"),
        (["--run.name", "../elsewhere"], "run.name"),
        (["--placement.kind", "spread"], "placement.kind"),
        (["--placement.host", "0.0.0.0"], "placement.host"),
        (["--placement.host", "a b"], "placement.host"),
        (["--placement.kind", "cluster", "--placement.ray_address", "10.0.0.1"], "placement.ray_address"),
        (["--placement.ray_address", "10.0.0.1:6379"], "for kind=cluster"),
        (["--placement.kind", "split", "--sync.transport", "ipc"], "sync.transport=ipc is not for"),
        (["--placement.kind", "cluster", "--sync.transport", "shm"], "use nccl, or auto"),
        (["--sync.every", "5", "--run.evaluate_every", "5"], "selfplay.max_staleness"),
        (["--sync.every", "2", "--run.evaluate_every", "5"], "run.evaluate_every"),
        (["--environment.min_prime", "24", "--environment.max_prime", "28"], "no prime"),
        (["--selfplay.proposals_per_task", "0"], "selfplay"),
        (["--run.final_evaluations", "9", "--run.steps", "10"], "final_evaluations"),
        (["--learner.zero_stage", "0", "--model.dtype", "bfloat16"], "learner.zero_stage=0 with"),
        (["learner.lr", "1"], "learner.lr"),
        (["--stream.max_message_mib", "1", "--stream.batch_kib", "1025"], "batch_kib=1025"),
        (["--stream.batch_ms", "-1"], "stream.batch_ms"),
        (["--environment.curriculum", "[[0, 7]]"], "curriculum"),
        (["--environment.curriculum", "[[5, 7], [5, 11]]"], "curriculum"),
        (["--environment.curriculum", "[[5, 11], [9, 7]]"], "curriculum"),
        (["--environment.curriculum", "[[5, 13]]"], "curriculum"),
        (["--environment.curriculum", "[[5]]"], "environment.curriculum"),
        (["--environment.held_out", "1"], "environment.held_out"),
        (["--environment.tasks", "[]"], "environment.tasks"),
        (["--environment.tasks", '["deduction", "deduction"]'], "environment.tasks: names one task or more"),
        (["--environment.tasks", '["addition"]'], "environment.tasks.0"),
        (
            ["--learner.advantage.baseline", "group", "--selfplay.solver_samples", "separate"],
            "learner.advantage.baseline",
        ),
        (["--selfplay.train_proposer", "false", "--selfplay.solver_samples", "separate"], "train_proposer"),
        (["--learner.trust_region.band_low", "2"], "learner.trust_region.band_low"),
        (["--sync.every", "2", "--run.evaluate_every", "2", "--run.checkpoint_every", "5"], "run.checkpoint_every"),
        (["--sampling.temperature", "0.005"], "sampling.temperature"),
        (["--rewards.correct", "2e6"], "rewards, with rewards.length_penalty"),
        (["--rewards.invalid", "-2e6"], "more than 1e"),
        (
            ["--rewards.length_penalty", "1000"],
            "rewards.length_penalty for sampling.max_response_tokens, can come to 1",
        ),
        (["--selfplay.attempts", "4096"], "selfplay.attempts"),
        (["--sampling.max_response_tokens", "20000000"], "raise stream.max_message_mib"),
        (["--stream.max_message_mib", "1", "--stream.batch_kib", "1", "--selfplay.attempts", "99"], "100 episodes"),
    ],
)
def test_unusable_values_are_refused_by_name(overrides, named):
    with pytest.raises(ConfigError, match=re.sub(r"([.?()\[\]])", r"\\\1", named)):
        load_config(None, overrides)


def test_tasks_are_the_same_in_whatever_order_they_are_written():
    named = [
        load_config(None, ["--environment.tasks", f"[{each}]"])
        for each in ("'induction','deduction'", "'deduction','induction'")
    ]
    assert named[0] == named[1]
    assert set(named[0].environment.tasks) == {"induction", "deduction"}


def test_solver_rows_weigh_as_much_as_the_trained_samples_of_a_problem_are_many():
    assert load_config(None).solver_row_weight == 1 / 8
    assert load_config(None, ["--selfplay.solver_samples", "separate"]).solver_row_weight == 1
    assert load_config(None, ["--learner.solver_row_weight", "0.3"]).solver_row_weight == 0.3


def test_unreadable_file_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "missing.toml")
    (tmp_path / "broken.toml").write_text("[learner\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "broken.toml")
    (tmp_path / "latin.toml").write_bytes('[run]\nname = "é"\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        load_config(tmp_path / "latin.toml")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "c.toml").write_text("[run]\nsteps = 3\n", encoding="utf-8-sig")
    assert load_config(tmp_path / "c.toml").run.steps == 3


def test_every_default_is_reachable_by_its_key():
    for key in known_keys():
        assert key.split(".")[0] in Config.model_fields


def test_shared_imports_without_torch_or_engines():
    code = (
        "import sys, shared.config, shared.messages, shared.transport, shared.metrics, shared.model_folder\n"
        "heavy = {'torch', 'vllm', 'deepspeed', 'ray', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:5555",
        "tcp://0.0.0.0:5555",
        "tcp://[::]:5555",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:*",
        "tcp://host",
        "tcp://127.0.0.1:70000",
        "ipc:///tmp/x",
        "127.0.0.1:5555",
        "tcp://eth0;127.0.0.1:5555",
    ],
)
def test_the_stream_listens_at_one_address_that_a_worker_can_reach(endpoint):
    with pytest.raises(ConfigError, match=r"stream.endpoint: must be auto or tcp://host:port"):
        load_config(None, ["--stream.endpoint", endpoint])
    for good in ("auto", "tcp://127.0.0.1:5555", "tcp://[::1]:5555", "tcp://node-3.cluster:65535"):
        assert load_config(None, ["--stream.endpoint", good]).stream.endpoint == good


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["--learner.offload_optimizer=true", "--learner.zero_stage=3"], "learner.zero_stage=1 or 2, not 3"),
        (["--rollout.gpu_memory_share=0.5", "--learner.gpu_memory_share=0.6"], "are more than one GPU"),
        (
            ["--rollout.gpu_memory_share=0.3", "--rollout.workers=2", "--learner.gpu_memory_share=0.6"],
            "rollout.workers=2",
        ),
        (["--learner.gpu_memory_share=1.5"], "learner.gpu_memory_share"),
        (["--learner.offload_optimizer=sometimes"], "learner.offload_optimizer"),
    ],
)
def test_what_cannot_share_a_gpu_is_refused(overrides, named):
    with pytest.raises(ConfigError, match=named):
        load_config(None, overrides)


def test_engines_elsewhere_may_have_a_gpu_to_themselves():
    words = ["--rollout.gpu_memory_share=0.9", "--learner.gpu_memory_share=0.9", "--placement.kind=split"]
    assert load_config(None, words).rollout.gpu_memory_share == 0.9


@pytest.mark.parametrize(("word", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_offloading_is_decided_or_left_to_the_plan(word, value, tmp_path):
    config = load_config(None, [f"--learner.offload_optimizer={word}"])
    assert config.learner.offload_optimizer == value
    (tmp_path / "config.toml").write_text(dump_toml(config))
    assert load_config(tmp_path / "config.toml") == config


CLUSTER = ["--placement.kind=cluster", "--placement.ray_address=10.0.0.1:6379"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_the_stream_of_a_cluster_is_not_at_an_address_that_this_machine_alone_reaches(host):
    with pytest.raises(ConfigError, match="cannot be reached from the other machines"):
        load_config(None, [*CLUSTER, f"--stream.endpoint=tcp://{host}:5555"])
    assert load_config(None, [*CLUSTER, "--stream.endpoint=tcp://10.0.0.1:5555"]).placement.kind == "cluster"


@pytest.mark.parametrize(
    ("kind", "device", "transport"),
    [
        ("colocated", "cpu", "shm"),
        ("colocated", "cuda", "ipc"),
        ("split", "cpu", "shm"),
        ("split", "cuda", "nccl"),
        ("cluster", "cpu", "nccl"),
        ("cluster", "cuda", "nccl"),
    ],
)
def test_weights_travel_as_the_placement_needs_it(kind, device, transport):
    assert load_config(None, [f"--placement.kind={kind}", f"--placement.device={device}"]).transport == transport


def test_samples_of_older_weights_that_nothing_corrects_for_are_told_of():
    uncorrected = ["--learner.trust_region.correction", "none"]
    assert load_config(None, []).doubtful == []
    assert load_config(None, [*uncorrected, "--selfplay.max_staleness", "0"]).doubtful == []
    [line] = load_config(None, [*uncorrected, "--selfplay.max_staleness", "1"]).doubtful
    assert "nothing corrects for samples of older weights" in line
