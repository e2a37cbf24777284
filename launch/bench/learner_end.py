"""The learner's end of the stream as a process of its own: it issues a batch of tickets, and takes what comes back."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from launch.beginnings import seed_stages
from learner.collector import Batch, Collector
from learner.greeting import Identity
from learner.journal import JOURNAL, Journal
from learner.problem_buffer import ProblemBuffer
from learner.ticket_check import TokenLimits
from learner.worker_pool import WorkerPool
from rollout.environment import make_environment
from shared import messages as msg
from shared.config import Config
from shared.errors import PrimezeroError
from shared.model_folder import model_fingerprint, tokenizer_fingerprint

PROBE = (1, 2)
_END_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Played:
    """A batch as it came back.

    begin, end: time.monotonic() when its tickets were issued, and when all were journalled and acknowledged
    valid: proposals that stated a valid problem; rejected: messages that were not taken
    """

    begin: float
    end: float
    tickets: int
    tokens: int
    proposals: int
    valid: int
    rejected: int

    @property
    def seconds(self) -> float:
        """From issuing to the last acknowledgement."""
        return self.end - self.begin


class LearnerEnd:
    """The other process, from this one."""

    def __init__(self, connection: Connection, process: multiprocessing.process.BaseProcess) -> None:
        self._connection = connection
        self._process = process

    def listen(self, endpoint: str) -> None:
        """Have it play batch 0, always the same, with the next worker that comes to `endpoint`."""
        self._connection.send(endpoint)

    def played(self, timeout_s: float) -> Played:
        """What came of it. PrimezeroError when it fails, or says nothing in time."""
        if not self._connection.poll(timeout_s):
            raise PrimezeroError(f"the learner's end of the benchmark said nothing for {timeout_s:g} s")
        try:
            answer = self._connection.recv()
        except EOFError:
            answer = "its process is gone"
        if not isinstance(answer, Played):
            raise PrimezeroError(f"the learner's end of the benchmark failed: {answer}")
        return answer

    def answered(self) -> bool:
        """Whether `played` returns or fails at once."""
        return self._connection.poll() or not self._process.is_alive()


@contextmanager
def learner_end(config: Config, vocabulary: int) -> Iterator[LearnerEnd]:
    """A learner's end for workers of `config`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, config, vocabulary), name="learner end", daemon=True)
    process.start()
    theirs.close()
    try:
        yield LearnerEnd(ours, process)
    finally:
        ours.close()
        process.join(_END_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection, config: Config, vocabulary: int) -> None:
    while True:
        try:
            endpoint = connection.recv()
        except EOFError:
            return
        try:
            answer: Played | str = _play(endpoint, config, vocabulary)
        except Exception as error:
            answer = repr(error)
        connection.send(answer)


def _play(endpoint: str, config: Config, vocabulary: int) -> Played:
    environment = make_environment(config.environment)
    (stage,) = seed_stages(environment, config)
    buffer = ProblemBuffer(stage.problems, capacity=config.selfplay.buffer_capacity, seed=config.run.seed)
    collector = Collector(
        buffer,
        tasks=environment.tasks,
        selfplay=config.selfplay,
        rewards=config.rewards,
        limits=TokenLimits(config.sampling.max_prompt_tokens, config.sampling.max_response_tokens, vocabulary),
        seed=config.run.seed,
    )
    identity = Identity(
        model_fingerprint(config.model.path), tokenizer_fingerprint(config.model.path), environment.fingerprint
    )
    with tempfile.TemporaryDirectory(prefix="primezero-bench-") as folder:
        journal = Journal(Path(folder) / JOURNAL)
        pool = WorkerPool(endpoint, config, identity, collector, journal)
        try:
            pool.wait_for_workers(1, config.stream.worker_timeout_s)
            members = pool.members()
            pool.call(dict.fromkeys(members, msg.FinishUpdate(0, PROBE)), config.sync.timeout_s)
            pool.prove(members, 0)
            begin = time.monotonic()
            pool.open_through(0, 0)
            batch = pool.wait_for_batch(0)
            end = time.monotonic()
            pool.send_home()
        finally:
            pool.close()
            journal.close()
    return _played(batch, begin, end, sum(pool.rejected.values()))


def _played(batch: Batch, begin: float, end: float, rejected: int) -> Played:
    proposals = [ticket for ticket in batch.tickets if ticket.proposal is not None]
    return Played(
        begin=begin,
        end=end,
        tickets=len(batch.tickets),
        tokens=sum(t.untrained_tokens + sum(len(e.response_ids) for e in t.episodes) for t in batch.tickets),
        proposals=len(proposals),
        valid=sum(ticket.proposed is not None for ticket in proposals),
        rejected=rejected,
    )
