"""`primezero bench e2e`: its sizes, what counts as a step, and a whole small run of its processes."""

import multiprocessing
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.bench.e2e import (
    E2ESettings,
    Measured,
    Round,
    Work,
    bench_e2e,
    counted_kind,
    generate_results,
    measure,
    overlap_results,
)
from launch.bench.models import bench_model
from launch.bench.plain_loop import PlainLoop, fastest
from launch.bench.split_processes import SplitProcesses
from launch.cli import main
from shared.errors import ConfigError, PrimezeroError

STEP = {
    "episodes": 10,
    "prompt_tokens": 300,
    "stream": {"cpu_s": 0.02, "worker_cpu_s": 0.01},
    "phases": {"wait_s": 0.1, "train_s": 1.0, "sync_s": 0.2},
}
WORK = Work(prompts=5, completions=2, response_tokens=20)


def test_a_step_counts_where_the_one_before_was_of_its_kind():
    kinds = ("together", "together", "rollout", "rollout", "rollout", "learner")
    assert [counted_kind(kinds, index) for index in range(6)] == [None, "together", None, "rollout", "rollout", None]
    assert counted_kind(("together",), 0) == "together"


def test_the_overlap_is_judged_by_the_slower_half():
    rounds = [Round(together=1.5, train=0.9, tokens=180.0, rollout=1.2, learner=1.0)] * 3
    found = {result.name: result for result in overlap_results(Measured(WORK, rounds, [STEP] * 6))}
    assert (found["overlap"].value, found["overlap"].reference, found["overlap"].ratio) == (1.5, 1.2, 1.25)
    assert found["overlap_ratio"].value == 1.25
    assert found["imbalance"].value == pytest.approx(1.2)
    assert found["both_busy"].value == pytest.approx(0.7)
    assert found["overlap.wire"].value == pytest.approx(0.03)
    assert (found["overlap.wait"].value, found["overlap.prompt_tokens"].value) == (0.1, 30)


def test_the_plain_loop_s_step_is_compared_with_as_many_tokens():
    rounds = [Round(together=1.5, train=0.9, tokens=180.0, sampling=2.0, update=1.0)] * 3
    found = {result.name: result for result in generate_results(Measured(WORK, rounds, [STEP] * 6))}
    # 180 of 200 tokens were sampled: a whole step would have taken 1.5 s / 0.9.
    assert found["vs_generate"].value == pytest.approx(0.6)
    assert found["vs_generate"].reference == pytest.approx(1 / 3)
    assert found["vs_generate"].ratio == pytest.approx(1.8)
    assert found["tokens_per_s"].value == 120


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float16"}, "--dtype float16"),
        ({"cores": "some"}, "--cores some"),
        ({"colocation": "never"}, "--colocation never"),
        ({"arms": ("overlap", "all")}, "--arms overlap,all"),
        ({"arms": ()}, "--arms is empty"),
        ({"rounds": 0}, "--rounds"),
        ({"completions": 1}, "--completions"),
    ],
)
def test_impossible_sizes_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        bench_e2e(E2ESettings(**changes))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("--max-tokens 0", "ConfigError: --max-tokens: "), ("--prompts=-6", "make no run (selfplay.buffer_problems_per_")],
)
def test_sizes_that_no_run_could_have_are_refused_too(capfd, wrong, said):
    assert main(["bench", "e2e", "--arms", "overlap", "--model", "tiny", *wrong.split()]) == 1
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("per_row", "best", "tried"),
    [
        ({8: 0.30, 16: 0.20, 32: 0.21, 64: 0.02, 128: 0.05, 256: 0.01}, 64, [8, 16, 32, 64, 64, 128]),
        ({8: 0.26, 16: 0.3, 32: 0.1}, 8, [8, 16]),
        ({8: 0.01, 16: 0.02, 32: 0.5}, 8, [8, 8, 16, 16]),
        ({8: 1.4, 16: 1.3, 32: 1.2}, 16, [8, 16]),
    ],
)
def test_micro_batches_are_tried_until_they_get_clearly_slower(per_row, best, tried):
    sizes = []

    def duration(size):
        sizes.append(size)
        return per_row[size]

    assert fastest(list(per_row), duration) == best
    assert sizes == tried


def test_the_plain_loop_samples_whole_completions_and_learns(tmp_path):
    with bench_model("tiny", vocabulary=64, dtype="float32") as model:
        loop = PlainLoop(model.folder, dtype="float32", prompts=[[5, 6, 7], [8]], completions=3, response_tokens=4)
        tokens = loop.generate()
        assert tokens.shape == (6, 3 + 4)
        assert tokens[:, :3].tolist() == [[5, 6, 7]] * 3 + [[0, 0, 8]] * 3
        with pytest.raises(RuntimeError, match="tune"):
            loop.update(tokens)
        loop.tune()
        before = [parameter.detach().clone() for parameter in loop.parameters()]
        loop.update(tokens)
        assert any(not parameter.equal(old) for parameter, old in zip(loop.parameters(), before, strict=True))


def test_a_learner_that_was_killed_is_an_error_with_the_end_of_its_log(tmp_path):
    (tmp_path / "learner.log").write_text("step 3\n")
    processes = object.__new__(SplitProcesses)
    processes._folder, processes._timeout_s = tmp_path, 5.0
    processes._director, directed = multiprocessing.Pipe()
    directed.close()
    processes._learner = SimpleNamespace(name="learner", exitcode=-signal.SIGKILL, join=lambda timeout: None)
    for tell in (processes.train, processes.next_batch):
        with pytest.raises(PrimezeroError, match=r"learner process was killed, most often for want of memory:\nstep 3"):
            tell()


def test_of_processes_that_are_given_up_no_shared_memory_is_left():
    held = Path(f"/dev/shm/primezero-test-e2e-{os.getpid()}")
    child = subprocess.Popen(["bash", "-c", f"exec 3>{held}; echo; exec sleep 1000"], stdout=subprocess.PIPE)
    child.stdout.readline()
    processes = object.__new__(SplitProcesses)
    processes._director, _ = multiprocessing.Pipe()
    ended = SimpleNamespace(pid=None, exitcode=None, join=lambda timeout: None)
    processes._learner = SimpleNamespace(pid=child.pid, exitcode=None, join=child.wait)
    processes._rollout = ended
    try:
        assert held.exists()
        processes.close()
        assert not held.exists()
    finally:
        child.kill()
        held.unlink(missing_ok=True)


@pytest.mark.integration
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("arm", "measured", "counted"),
    [("generate", {"sampling", "update"}, [3, 4]), ("overlap", {"rollout", "learner"}, [9, 10])],
)
def test_a_small_run_measures_what_it_compares(arm, measured, counted):
    settings = E2ESettings(rounds=1)
    with bench_model("tiny", vocabulary=1024, dtype="float32", environment=settings.environment) as model:
        work = Work(prompts=3, completions=2, response_tokens=8)
        found = measure(settings, arm, model, work, lambda _: None)
    [round_] = found.rounds
    spent = {name: value for name, value in asdict(round_).items() if value is not None}
    assert spent.keys() == {"together", "train", "tokens", *measured}
    assert min(spent.values()) > 0
    assert round_.train < round_.together
    assert 6 <= round_.tokens <= work.tokens
    assert [step["step"] for step in found.steps] == counted
    for step in found.steps:
        assert step["episodes"] == 6
        assert step["learner"]["tokens"] == step["response_tokens"]
        assert step["phases"]["train_s"] > 0
        assert 0 <= step["stream"]["tickets"] <= 6  # one batch may come in while another is trained
