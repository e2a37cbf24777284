"""The learner's loop: collect, normalise, step, send, evaluate, log."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError

from learner.batch_metrics import batch_metrics
from learner.checkpoint import POLICY, CheckpointStore, TrainerState, read_state
from learner.collector import Collector
from learner.evaluations import Evaluations
from learner.greeting import Identity
from learner.journal import JOURNAL, Journal
from learner.members import Member
from learner.memory_record import memory_record
from learner.normalise import Normaliser, SelectedRows
from learner.policy import Policy
from learner.problem_buffer import ProblemBuffer
from learner.progress import Progress, Summary
from learner.ranks import Leader, follow
from learner.recovery import recover
from learner.spec import LearnerSpec
from learner.ticket_check import TokenLimits
from learner.train_metrics import TrainMetrics
from learner.weight_client import StreamWeightSyncClient
from learner.weight_sender import WeightSender
from learner.weight_sync import WeightSync
from learner.worker_pool import WorkerPool
from shared import messages as msg
from shared.config import Config
from shared.disk import reason, what_to_do, writing
from shared.errors import CheckpointError, InstallationError, PrimezeroError, StreamTimeoutError
from shared.heap import keep_freed_memory
from shared.model_folder import copy_tokenizer, model_fingerprint, tokenizer_fingerprint

# Twice the time in which a worker that has lost its connection is back.
GATHER_S = 10.0

log = logging.getLogger(__name__)

# Batches in a row whose gradients are not finite, before a run ends.
MOST_SKIPPED = 5


def run_learner(
    config: Config,
    spec: LearnerSpec,
    *,
    rank: int = 0,
    world_size: int = 1,
    beat: Callable[[], None] = lambda: None,
    directed: Callable[[Leader], Leader] = lambda leader: leader,
) -> Summary | None:
    """One learner rank, from start to end; rank 0 leads and returns the summary.

    beat: called, on rank 0, as the work goes on: by every wait for workers, with every micro-batch, and with every part
        of what is saved or loaded
    directed: what the trainer gets for its policy instead, for benchmarks that decide what it does

    Raises InstallationError where a run on GPUs finds none here.
    """
    if config.placement.device == "cuda" and not torch.cuda.is_available():
        raise InstallationError(
            "PyTorch cannot use the GPU here, and would train on the processor: `primezero doctor` looks for the reason"
        )
    keep_freed_memory()
    gc.freeze()  # what is imported stays: DeepSpeed collects garbage many times, and need not look through it
    atexit.register(gc.unfreeze)  # else libraries complain of what was never freed
    torch.set_num_threads(config.learner.threads)
    log.info("loads the model")
    policy = Policy(
        config.model.path,
        dtype=config.model.dtype,
        config=config.learner,
        temperature=config.sampling.temperature,
        rank=rank,
        world_size=world_size,
        beat=beat,
    )
    beat()
    store = CheckpointStore(
        spec.checkpoints, keep=config.run.keep_checkpoints, every=config.run.checkpoint_every, beat=beat
    )
    resumed = None
    if spec.resume_from is not None:
        resumed = read_state(spec.resume_from)
        policy.load(spec.resume_from / POLICY, resumed.policy)
    if rank > 0:
        follow(policy)
        return None
    leader = Leader(policy)
    trainer = Trainer(config, spec, directed(leader), store, resumed, beat)
    try:
        summary = trainer.run()
        leader.stop()
        return summary
    finally:
        trainer.close()


def _is_unsaved(version: int, first_version: int, store: CheckpointStore) -> bool:
    """Whether a run that ends at `version` has yet to save it."""
    saved_before = version == first_version > 0
    return not (saved_before or store.is_due(version))


def _check_same(ours: Mapping[str, str], saved: Mapping[str, str]) -> None:
    if changed := [part for part in ours if ours[part] != saved.get(part)]:
        raise CheckpointError(
            f"the {' and the '.join(changed)} of this run have changed since its checkpoint was written: put back what "
            "was there, or start anew with --run.overwrite true"
        )


class Trainer:
    """Rank 0: owns the worker pool, the collector, the versions and the run's records."""

    def __init__(
        self,
        config: Config,
        spec: LearnerSpec,
        policy: Leader,
        store: CheckpointStore,
        resumed: TrainerState | None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._beat = beat
        self._spec = spec
        self._policy = policy
        self._store = store
        self._first_version = 0 if resumed is None else resumed.version
        self._normaliser = Normaliser(config)
        self._buffer = ProblemBuffer(
            spec.seeds[0].problems, capacity=config.selfplay.buffer_capacity, seed=config.run.seed
        )
        self._identity = Identity(
            model=model_fingerprint(config.model.path),
            tokenizer=tokenizer_fingerprint(config.model.path),
            environment=spec.environment,
        )
        if resumed is not None:
            _check_same(asdict(self._identity), resumed.identity)
            self._normaliser.restore(resumed.normaliser)
            self._buffer.restore(resumed.buffer)
        self._progress = Progress(config, spec.run_folder, resumed_at=self._first_version)
        collector = Collector(
            self._buffer,
            tasks=list(spec.seeds[0].problems),
            selfplay=config.selfplay,
            rewards=config.rewards,
            limits=TokenLimits(
                prompt=config.sampling.max_prompt_tokens,
                response=config.sampling.max_response_tokens,
                vocabulary=policy.vocabulary,
            ),
            seed=config.run.seed,
            stages=spec.seeds,
            lineage=spec.lineage,
            first_batch=self._first_version,
        )
        self._journal = Journal(spec.run_folder / JOURNAL, accounted=0 if resumed is None else resumed.journal_end)
        self._recover(collector, resumed)
        self._pool = WorkerPool(
            spec.endpoint, config, self._identity, collector, self._journal, keys=spec.keys, beat=beat
        )
        client = StreamWeightSyncClient(self._pool, spec.probe, config.sync.timeout_s)
        self._sync = WeightSync(
            self._pool,
            client,
            WeightSender(
                client,
                policy.weights,
                dtype=getattr(torch, config.model.dtype),
                transport=config.transport,
                buffer_bytes=config.sync.buffer_mib * 2**20,
                timeout_s=config.sync.timeout_s,
                address=spec.host,
            ),
            lambda: policy.score(spec.probe),
            tolerance=config.probe_tolerance,
            wait_s=config.rollout.start_timeout_s,
        )
        self._evaluations = Evaluations(self._pool, self._progress.evaluated, config.rollout.evaluation_timeout_s)
        self._batches_skipped = 0  # in a row, in whole
        self._asleep: list[Member] = []
        self._version = self._first_version
        # The step whose weights are on their way to the workers beside the next one's training.
        self._unrecorded: dict[str, Any] | None = None

    def run(self) -> Summary:
        """Train `run.steps` batches, or until the time limit or the stop file; export; summarise."""
        config, last = self._config, self._config.run.steps - 1
        self._gather_workers()
        version = self._version
        log.info("sends its weights")
        self._sync.begin(version)
        self._finish_sync()
        log.info("its weights are in place")
        final = version == config.run.steps or self._must_stop()
        if self._progress.needs_evaluation(version, final=final):
            self._evaluations.start(version)
        self._pool.turnover()  # who was there from the beginning has not joined
        self._pool.stream_cost()
        self._progress.start_clock()
        if not final:
            self._pool.open_through(version, last)
        while not final:
            record = self._train_batch(version)
            self._progress.lap("train_s")
            self._version = version = version + 1
            final = version == config.run.steps or self._must_stop()
            self._settle()
            self._progress.lap("sync_s")
            beside_training = False
            if final or self._is_synced(version):
                self._finish_evaluation()
                self._progress.lap("evaluation_wait_s")
                self._sync.begin(version)
                if not final:
                    self._pool.open_through(version, last)
                evaluates = final or self._evaluations.owed or version % config.run.evaluate_every == 0
                beside_training = not evaluates and self._may_sync_beside_training(version)
                if not beside_training:
                    record |= self._finish_sync()
                self._progress.lap("sync_s")
                if evaluates:
                    self._evaluations.start(version)
            else:
                self._wake()
            record |= {"workers": asdict(self._pool.turnover()), "stream": asdict(self._pool.stream_cost())}
            self._unrecorded = self._progress.step(version, record)
            if not beside_training:
                self._record()
            if self._store.is_due(version):
                self._save_checkpoint(version)
        self._finish_evaluation()
        if _is_unsaved(version, self._first_version, self._store):
            self._save_checkpoint(version)
        self._export(self._spec.run_folder / "model")
        summary = self._progress.summarise(version)
        self._pool.send_home()
        return summary

    def _gather_workers(self) -> None:
        """All of them, at a run's start; of those that a learner before this one had, whoever is left.

        Those greet it within GATHER_S. Who comes later, or is started again, is brought up as any newcomer.
        """
        workers, limit_s = self._config.rollout.workers, self._config.rollout.start_timeout_s
        log.info("waits for the engine%s", "s" if workers > 1 else "")
        if self._spec.replaces:
            with contextlib.suppress(StreamTimeoutError):
                self._pool.wait_for_workers(workers, GATHER_S)
            workers = 1
        self._pool.wait_for_workers(workers, limit_s)

    def _export(self, folder: Path) -> None:
        """Write the model beside, and put it in the place of one that is there: a reader finds a whole one."""
        beside = folder.with_name(f".{folder.name}")
        with writing(folder, SafetensorError):
            for unfinished in (beside, beside.with_suffix(".old")):
                shutil.rmtree(unfinished, ignore_errors=True)
            beside.mkdir()
            self._policy.save_pretrained(beside)
            copy_tokenizer(self._config.model.path, beside)
            if folder.exists():
                folder.rename(beside.with_suffix(".old"))
            beside.rename(folder)
            shutil.rmtree(beside.with_suffix(".old"), ignore_errors=True)

    def _recover(self, collector: Collector, resumed: TrainerState | None) -> None:
        version = self._first_version
        held = [] if resumed is None else collector.restore(resumed.collector)
        if resumed is None and self._journal.end:
            collector.open(version, self._config.run.steps - 1)
        since = 0 if resumed is None else resumed.journal_end
        recovered = recover(self._journal, collector, version=version, held=held, since=since)
        log.info("lineage %d goes on from version %d: %s", self._spec.lineage, version, recovered)

    def close(self) -> None:
        """Release everything, on every way out. The workers of a run that has not ended wait for the next learner."""
        with contextlib.ExitStack() as closing:
            closing.callback(self._journal.close)
            closing.callback(self._progress.close)
            closing.callback(self._sync.close)
            closing.callback(self._pool.close)

    def _train_batch(self, number: int) -> dict[str, object]:
        batch = self._pool.wait_for_batch(number, self._attend)
        self._progress.lap("wait_s")
        self._put_to_sleep(for_update=self._is_synced(number + 1))
        rows = self._normaliser.select(batch)
        training_batch = self._normaliser.training_batch(rows, self._reward_penalty(rows))
        trained = self._policy.train(training_batch)
        self._note_skipped(number, trained, rows)
        return {
            "learner": asdict(trained),
            **asdict(batch_metrics(batch, attempts=self._config.selfplay.attempts)),
            "rejected": self._pool.rejected,
            "memory": memory_record(),
        }

    def _note_skipped(self, number: int, trained: TrainMetrics, rows: SelectedRows) -> None:
        """Tell of optimizer steps that were skipped; PrimezeroError when nothing has been learned for too long."""
        if trained.skipped_steps < trained.optimizer_steps or not trained.skipped_steps:
            self._batches_skipped = 0
        else:
            self._batches_skipped += 1
        if not trained.skipped_steps:
            return
        causes = ", ".join(f"{row} ({rows.cells[row]})" for row in trained.not_finite_rows) or "no row by itself"
        log.warning(
            "batch %d: %d of %d optimizer steps skipped, since their gradient is not finite. Not finite among the %d "
            "rows: %s",
            number,
            trained.skipped_steps,
            trained.optimizer_steps,
            len(rows.episodes),
            causes,
        )
        if self._batches_skipped == MOST_SKIPPED:
            raise PrimezeroError(
                f"the gradients of the last {MOST_SKIPPED} batches were not finite, so none of them was trained on; "
                f"the weights are those of before. Not finite in the last: {causes}. Begin a run with a lower "
                "learner.lr, or see metrics.jsonl for what grew before"
            )

    def _reward_penalty(self, rows: SelectedRows) -> npt.NDArray[np.float32] | None:
        """Under the KL estimator k1, what comes off each row's reward; every rank scores its part."""
        if not self._policy.penalises_reward:
            return None
        return self._policy.reference_penalty(rows.unnormalised()).numpy()

    def _may_sync_beside_training(self, version: int) -> bool:
        """Whether the next batch may be trained, if it is closed, before all workers have got `version`."""
        config = self._config
        takes_turns = config.rollout.colocation == "alternate"
        return config.selfplay.max_staleness > 0 and not takes_turns and not self._store.is_due(version)

    def _finish_sync(self) -> dict[str, object]:
        record = self._sync.finish()
        if record is None:  # the policy may be newer by now, which does as well
            record = self._sync.everyone(self._version)
        self._asleep = []
        self._progress.synced()
        return {"sync": record}

    def _settle(self) -> None:
        """Wait for the sync beside training, if there is one, and record its step."""
        if self._unrecorded is not None:
            self._unrecorded |= self._finish_sync()
            self._record()

    def _record(self) -> None:
        assert self._unrecorded is not None
        self._progress.record(self._unrecorded)
        self._unrecorded = None

    def _attend(self) -> None:
        """What may happen while the learner waits for a batch.

        A sync is over. A worker has come or left: bring it up, or have another do its evaluation.
        """
        if not self._sync.is_settled:
            return  # which calls for attention in its turn
        self._settle()
        self._evaluations.attend(self._version)
        self._bring_newcomers_up()
        self._evaluations.attend(self._version)

    def _bring_newcomers_up(self) -> None:
        # New weights would spoil an evaluation of older ones that is under way on a worker that takes part.
        spoils = self._sync.disturbs_others and self._evaluations.version not in (None, self._version)
        if not spoils:
            self._sync.newcomers(self._version)

    def _is_synced(self, version: int) -> bool:
        """Whether the workers get `version` in any case; one that turns out to be the last they get, too."""
        return version == self._config.run.steps or version % self._config.sync.every == 0

    def _put_to_sleep(self, *, for_update: bool) -> None:
        """Where engines and learner take turns on one device, it is the learner's from here on."""
        if self._config.rollout.colocation == "alternate":
            self._finish_evaluation()
            self._progress.lap("evaluation_wait_s")
            requests = dict.fromkeys(self._pool.ready(), msg.Sleep(for_update))
            self._asleep = list(self._pool.call(requests, self._config.sync.timeout_s))
            self._progress.lap("sleep_s")

    def _wake(self) -> None:
        """The engines' turn again, where no sync has woken them."""
        self._pool.call(dict.fromkeys(self._asleep, msg.Wake()), self._config.sync.timeout_s)
        self._asleep = []

    def _save_checkpoint(self, version: int) -> None:
        collector, journal_end = self._pool.snapshot()
        state = TrainerState(
            version=version,
            identity=asdict(self._identity),
            buffer=self._buffer.state(),
            normaliser=self._normaliser.state(),
            policy=self._policy.state(),
            collector=collector,
            journal_end=journal_end,
        )
        try:
            partial = self._store.begin(version)
            self._policy.save(partial / POLICY)
            self._journal.to_disk()
            self._store.commit(partial, state)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint of version {version} cannot be written to {self._spec.checkpoints}: "
                f"{reason(error)}. The one before it is intact; {what_to_do(self._spec.checkpoints, error)}"
            ) from error
        self._beat()
        self._progress.lap("checkpoint_s")

    def _finish_evaluation(self) -> None:
        """An evaluation belongs to one version: the next weight update waits for it here."""
        self._evaluations.finish(self._version, self._bring_newcomers_up)

    def _must_stop(self) -> bool:
        return self._spec.stop_file.exists() or self._progress.out_of_time()
