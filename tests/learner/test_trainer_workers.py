"""Whole training runs over real sockets with workers that come and go; engines, policy and weights are played."""

from __future__ import annotations

import json
import threading
from dataclasses import fields

import numpy as np
import pytest
from fake_worker import SMALL_BATCHES, FourCalls, ObedientWorker
from waiting import until

import learner.trainer
from learner.checkpoint import CheckpointStore
from learner.spec import LearnerSpec, SeedStage
from learner.train_metrics import TrainMetrics
from learner.trainer import Trainer
from shared import messages as msg
from shared.config_file import load_config
from shared.errors import PrimezeroError, StreamTimeoutError, WeightSyncError

PROBE = (1, 2, 3)


class PlayedPolicy:
    """Trains nothing; `during` is called in each update, with the update's number."""

    vocabulary = 100
    penalises_reward = False
    module = weights = None

    def __init__(self, journal: list[tuple[str, str]]) -> None:
        self._journal = journal
        self.updates = 0
        self.during = lambda update: None
        self.skipped: set[int] = set()

    def train(self, batch) -> TrainMetrics:
        self._journal.append(("learner", "train"))
        self.during(self.updates)
        self.updates += 1
        skipped = {"optimizer_steps": 1, "skipped_steps": int(self.updates in self.skipped), "not_finite_rows": (0,)}
        return TrainMetrics(**({field.name: 0 for field in fields(TrainMetrics)} | skipped))

    def score(self, probe) -> np.ndarray:
        return np.array([-1.0, -2.0], dtype=np.float32)

    def state(self) -> dict:
        return {}

    def save(self, folder) -> None:
        pass

    def save_pretrained(self, folder) -> None:
        pass


class Run:
    def __init__(
        self, folder, seeds, monkeypatch, *, point_to_point: bool = True, replaces: bool = False, **overrides
    ) -> None:
        settings = {"run.steps": 4, "run.evaluate_every": 2, "run.checkpoint_every": 0, "rollout.start_timeout_s": 60}
        settings |= SMALL_BATCHES | {"sync.timeout_s": 60, "rollout.evaluation_timeout_s": 60} | overrides
        monkeypatch.setattr(learner.trainer, "model_fingerprint", lambda folder: "m")
        monkeypatch.setattr(learner.trainer, "tokenizer_fingerprint", lambda folder: "t")
        monkeypatch.setattr(learner.trainer, "copy_tokenizer", lambda *folders: None)
        monkeypatch.setattr(
            learner.trainer,
            "WeightSender",
            lambda client, *_, **__: FourCalls(client, point_to_point=point_to_point),
        )
        self.folder, self.endpoint = folder, f"ipc://{folder}/stream"
        self.journal: list[tuple[str, str]] = []
        self.policy = PlayedPolicy(self.journal)
        self.workers: list[ObedientWorker] = []
        spec = LearnerSpec(
            endpoint=self.endpoint,
            run_folder=folder,
            environment="e",
            seeds=[SeedStage(0, seeds)],
            probe=PROBE,
            checkpoints=folder / "checkpoints",
            resume_from=None,
            lineage=3,
            stop_file=folder / "STOP",
            replaces=replaces,
        )
        config = load_config(None, [f"--{key}={value}" for key, value in settings.items()])
        self.trainer = Trainer(
            config,
            spec,
            self.policy,
            CheckpointStore(spec.checkpoints, keep=1, every=config.run.checkpoint_every),
            None,
        )

    def join(self, name: str = "rollout-0", **behaviour) -> ObedientWorker:
        self.workers.append(ObedientWorker(self.endpoint, name, journal=self.journal, **behaviour))
        return self.workers[-1]

    def play(self) -> list[dict]:
        """To the end; what is in metrics.jsonl."""
        try:
            self.trainer.run()
        finally:
            self.trainer.close()
        return self.records("metrics")

    def records(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def make_run(tmp_path, seeds, monkeypatch):
    made: list[Run] = []

    def make(**options) -> Run:
        made.append(Run(tmp_path, seeds, monkeypatch, **options))
        return made[-1]

    yield make
    for run in made:
        for worker in run.workers:
            worker.leave()


def test_a_run_to_its_end_sends_its_workers_home(make_run):
    run = make_run()
    worker = run.join()
    records = run.play()
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    workers = [record["workers"] for record in records]
    assert sum(turnover.pop("tickets_closed").get("rollout-0", 0) for turnover in workers) == 24
    assert all(turnover == {"workers_joined": 0, "workers_lost": 0, "tickets_reissued": 0} for turnover in workers)
    streams = [record["stream"] for record in records]
    assert sum(stream["tickets"] for stream in streams) == sum(stream["messages"] for stream in streams) == 24
    assert all(stream["bytes"] >= 100 * stream["tickets"] and stream["cpu_s"] > 0 for stream in streams)
    assert [e["version"] for e in run.records("evaluations")] == [0, 2, 4]
    until(lambda: worker.sent_home)


def test_batches_whose_gradient_is_not_finite_are_passed_over_until_there_are_five_in_a_row(make_run, caplog):
    run = make_run(**{"run.steps": 12})
    run.join()
    run.policy.skipped = {1, 2, 3, 4, 6, 7, 8, 9, 10, 11}
    with pytest.raises(
        PrimezeroError, match=r"gradients of the last 5 batches .* Not finite in the last: 0 \(proposer"
    ):
        run.play()
    assert run.policy.updates == 10
    assert sum("optimizer steps skipped" in message for message in caplog.messages) == 9


def test_a_run_that_fails_leaves_its_workers_to_the_next_learner(make_run):
    run = make_run()
    worker = run.join()

    def fail(update: int) -> None:
        raise RuntimeError("out of memory")

    run.policy.during = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        run.play()
    assert not worker.sent_home


def test_a_learner_in_the_place_of_another_goes_on_with_the_workers_that_are_left(make_run, monkeypatch):
    monkeypatch.setattr(learner.trainer, "GATHER_S", 0.5)
    run = make_run(replaces=True, **{"rollout.workers": 3})
    run.join()
    late: list[str] = []

    def during(update: int) -> None:
        if update == 1:
            run.join("rollout-1")
            until(lambda: len(run.trainer._pool.members()) == 2)
            late.append("rollout-1")

    run.policy.during = during
    records = run.play()
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert late
    assert "proven" in run.workers[1].said


def test_a_learner_in_the_place_of_another_has_all_workers_from_the_beginning_where_all_are_left(make_run):
    run = make_run(replaces=True, **{"rollout.workers": 2})
    run.join("rollout-0")
    late = threading.Timer(0.3, run.join, ["rollout-1"])
    late.start()
    assert sum(record["workers"]["workers_joined"] for record in run.play()) == 0


def test_at_a_run_s_start_all_workers_have_to_be_there(make_run):
    run = make_run(**{"rollout.workers": 2, "rollout.start_timeout_s": 0.5})
    run.join()
    with pytest.raises(StreamTimeoutError, match="1 of 2 rollout workers connected"):
        run.play()


def test_engines_and_learner_take_turns(make_run):
    """Asleep while the learner computes, awake by the sync or else woken; an evaluation is finished before."""
    run = make_run(**{"rollout.colocation": "alternate", "sync.every": 2, "selfplay.max_staleness": 1, "run.steps": 4})
    run.join()
    run.play()
    sync = ["StartUpdate", "UpdateWeights", "FinishUpdate", "proven"]
    # "work" comes whenever a ticket is closed early; what takes turns is the rest.
    steps = [what for _, what in run.journal if what != "work"]
    assert steps == [
        *["InitTransfer", *sync, "Evaluate"],
        *["Sleep", "train", "Wake"],
        *["Sleep", "train", *sync, "Evaluate"],
        *["Sleep", "train", "Wake"],
        *["Sleep", "train", *sync, "Evaluate"],
    ]
    for_update = [request.for_update for request in run.workers[0].requests if isinstance(request, msg.Sleep)]
    assert for_update == [False, True, False, True]  # as the engine is told that it need not keep its weights
    asleep = False
    for _, what in run.journal:
        asleep = what == "Sleep" or (asleep and what not in ("Wake", "FinishUpdate"))
        assert not (asleep and what == "Evaluate")
        assert asleep or what != "train"


def test_side_by_side_nobody_sleeps(make_run):
    run = make_run()
    run.join()
    run.play()
    assert not {what for _, what in run.journal} & {"Sleep", "Wake"}


BESIDE = {"selfplay.max_staleness": 1, "run.evaluate_every": 4}


def test_the_next_batch_is_trained_while_the_weights_are_on_their_way(make_run):
    """The engine swaps them in when the learner is already at work on the batch that older ones have sampled."""
    run = make_run(**BESIDE)
    worker = run.join()

    def during(update: int) -> None:
        if update == 0:
            worker.late_at = "FinishUpdate"
        if update == 1:
            until(lambda: worker.late)
            assert run.trainer._pool.ready(1) == []
            assert not (run.folder / "metrics.jsonl").read_text()
            worker.answer_late()

    run.policy.during = during
    records = run.play()
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(record["sync"]["probe_difference"] == 0 for record in records)
    assert json.loads((run.folder / "summary.json").read_text())["weight_syncs"] == 5
    versions = [request.version for request in worker.requests if isinstance(request, msg.FinishUpdate)]
    assert versions == [0, 1, 2, 3, 4]
    assert all(record["staleness_max"] <= 1 for record in records)


@pytest.mark.parametrize("changes", [{"selfplay.max_staleness": 0}, {"run.checkpoint_every": 1}])
def test_the_next_batch_waits_for_the_weights_where_something_depends_on_them(make_run, changes):
    """Every batch is sampled by the newest weights; or the step has to be on record before its checkpoint is."""
    run = make_run(**BESIDE | changes)
    run.join()
    run.policy.during = lambda update: run.journal.append(("settled", str(run.trainer._unrecorded is None)))
    assert len(run.play()) == 4
    assert [what for who, what in run.journal if who == "settled"] == ["True"] * 4


@pytest.mark.parametrize("waiting", [False, True])
def test_a_probe_that_comes_out_differently_beside_training_ends_the_run(make_run, waiting):
    """After the update under way, or at once where the learner waits for a batch; its step is not on record."""
    run = make_run(**BESIDE)
    worker = run.join(last_batch=0 if waiting else None)

    def during(update: int) -> None:
        worker.probe = (-1.0, -4.5)
        if update == 1:
            until(lambda: run.trainer._sync.is_settled)

    run.policy.during = during
    with pytest.raises(WeightSyncError, match=r"rollout-0 has the learner's weights .* computes something else"):
        run.play()
    assert run.policy.updates == (1 if waiting else 2)
    assert run.records("metrics") == []


@pytest.mark.parametrize("point_to_point", [True, False])
def test_a_worker_lost_with_the_weights_on_their_way_is_replaced(make_run, point_to_point):
    run = make_run(point_to_point=point_to_point, **BESIDE)
    first = run.join()

    def during(update: int) -> None:
        if update == 0:
            first.dies_at = "FinishUpdate"

    run.policy.during = during
    restarted = threading.Thread(target=lambda: (first.join(), run.join()))
    restarted.start()
    records = run.play()
    restarted.join()
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert sum(record["workers"]["workers_joined"] for record in records) == 1
    assert all("sync" in record for record in records)


def test_a_worker_that_dies_is_replaced_while_the_learner_waits_for_its_tickets(make_run):
    run = make_run()
    first = run.join(dies_at="work")
    restarted = threading.Thread(target=lambda: (first.join(), run.join()))
    restarted.start()
    records = run.play()
    restarted.join()
    del records[0]["workers"]["tickets_closed"]
    assert records[0]["workers"] == {"workers_joined": 1, "workers_lost": 1, "tickets_reissued": 6}
    assert len(records) == 4
    said = run.workers[1].said
    assert said.index("proven") < said.index("work")


@pytest.mark.parametrize("point_to_point", [True, False])
def test_a_worker_that_comes_during_an_update_works_from_the_next_sync_on(make_run, point_to_point):
    run = make_run(point_to_point=point_to_point)
    run.join()

    def during(update: int) -> None:
        if update == 1:
            late = run.join("rollout-1")
            until(lambda: len(run.trainer._pool.members()) == 2)
            assert late.said == []

    run.policy.during = during
    records = run.play()
    assert [record["workers"]["workers_joined"] for record in records] == [0, 1, 0, 0]
    assert run.workers[1].said[:6] == ["InitTransfer", "StartUpdate", "UpdateWeights", "FinishUpdate", "proven", "work"]


def test_an_evaluation_moves_to_another_worker_that_has_the_version(make_run):
    run = make_run(**{"rollout.workers": 2})
    unable, able = run.join("rollout-0", fails_at="Evaluate"), run.join("rollout-1")
    run.play()
    assert [e["version"] for e in run.records("evaluations")] == [0, 2, 4]
    assert unable.said.count("Evaluate") == 1
    assert able.said.count("Evaluate") == 3


def test_an_evaluation_waits_for_a_newcomer_where_no_other_worker_is_left(make_run):
    run = make_run(**{"run.steps": 0})
    first = run.join(fails_at="Evaluate")
    restarted = threading.Thread(target=lambda: (first.join(), run.join()))
    restarted.start()
    run.play()
    restarted.join()
    assert [e["version"] for e in run.records("evaluations")] == [0]
    assert run.workers[1].said[-2:] == ["proven", "Evaluate"]


def test_an_evaluation_of_weights_that_nobody_has_any_more_is_owed_at_the_next_sync(make_run):
    run = make_run(**{"run.steps": 6, "run.evaluate_every": 3})
    first = run.join(silent_at=None)

    def during(update: int) -> None:
        """The only worker dies in the midst of evaluating version 3, while the learner makes version 4."""
        if update == 2:
            first.silent_at = "Evaluate"
        if update == 3:
            until(lambda: first.said.count("Evaluate") == 2)
            first.leave()
            run.join()
            until(lambda: [m.incarnation for m in run.trainer._pool.members()] == [run.workers[1].incarnation])

    run.policy.during = during
    run.play()
    assert [e["version"] for e in run.records("evaluations")] == [0, 4, 6]
    assert first.said.count("Evaluate") == 2


def test_with_syncs_far_apart_a_newcomer_is_ahead_of_the_others_and_nobody_goes_back(make_run):
    run = make_run(**{"run.steps": 4, "sync.every": 2, "selfplay.max_staleness": 2, "rollout.max_open_tickets": 2})
    run.join()

    def during(update: int) -> None:
        if update == 0:
            run.join("rollout-1")
            until(lambda: len(run.trainer._pool.members()) == 2)

    run.policy.during = during
    records = run.play()
    assert records[0]["workers"]["workers_joined"] + records[1]["workers"]["workers_joined"] == 1
    versions = [r.version for r in run.workers[1].requests if hasattr(r, "version") and hasattr(r, "probe")]
    assert versions in ([1, 2, 4], [2, 4])  # at 1 if the learner had to wait for batch 1
    assert all(record["staleness_max"] <= 2 for record in records)
