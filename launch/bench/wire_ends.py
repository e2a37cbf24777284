"""The two ends of a stream as they are in a run, without engine and trainer: tickets are made beforehand."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from learner.collector import Collector
from learner.greeting import Identity
from learner.journal import JOURNAL, Journal
from learner.problem_buffer import ProblemBuffer
from learner.ticket_check import TokenLimits
from learner.worker_pool import WorkerPool
from rollout.outbox import Outbox
from rollout.session import Session
from shared import messages as msg
from shared.config import Config, RolloutConfig, SamplingConfig, SelfPlayConfig, StreamConfig
from shared.episodes import ClosedTicket, Episode, Problem, Role, Task, Ticket, Verdict, VersionSpan
from shared.heap import keep_freed_memory
from shared.transport import ClientKeys, ServerKeys, StreamClient

PATIENCE_S = 60.0
# Tickets that close in one turn of the worker's loop: an engine hands out in one step all that ended in it.
CLOSE_AT_ONCE = 8
VOCABULARY = 150_000


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a batch, and of its tickets, whose lengths are drawn evenly from half the most to the most.

    tickets: rounded to a multiple of 6, since each task has as many proposal tickets as buffer tickets
    """

    tickets: int
    attempts: int
    prompt_tokens: int
    response_tokens: int
    batch_kib: int
    batch_ms: float

    def config(self) -> Config:
        """A run's configuration that these sizes fit."""
        per_task = max(1, self.tickets // 6)
        return Config(
            selfplay=SelfPlayConfig(
                proposals_per_task=per_task,
                buffer_problems_per_task=per_task,
                attempts=self.attempts,
                seed_problems_per_task=8,
                max_staleness=0,
            ),
            sampling=SamplingConfig(max_prompt_tokens=self.prompt_tokens, max_response_tokens=self.response_tokens),
            rollout=RolloutConfig(max_open_tickets=per_task * 6),
            stream=StreamConfig(batch_kib=self.batch_kib, batch_ms=self.batch_ms, batch_timeout_s=PATIENCE_S),
        )


@dataclass(frozen=True, slots=True)
class Streamed:
    """One round. seconds: from the first ticket's encoding until the last acknowledgement is here

    worker_cpu_s, learner_cpu_s, stream_cpu_s: CPU seconds of either process, and of the learner's stream thread
    messages, bytes: those of closed tickets
    """

    seconds: float
    worker_cpu_s: float
    learner_cpu_s: float
    stream_cpu_s: float
    messages: int
    bytes: int


def made_ticket(ticket: Ticket, sizes: Sizes, rng: np.random.Generator) -> ClosedTicket:
    """What a worker could have made of a ticket: random tokens, half of the attempts right."""

    def episode(role: Role, prompt: np.ndarray[tuple[int], np.dtype[np.int32]], verdict: Verdict) -> Episode:
        tokens = _length(sizes.response_tokens, rng)
        return Episode(
            role=role,
            task=ticket.task,
            prompt_ids=prompt,
            response_ids=rng.integers(0, VOCABULARY, tokens, dtype=np.int32),
            behaviour_logprobs=-rng.random(tokens, dtype=np.float32),
            spans=(VersionSpan(ticket.id.batch, 0, tokens),),
            truncated=False,
            verdict=verdict,
            reward=1.0 if verdict is Verdict.CORRECT else -0.5,
        )

    def prompt() -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return rng.integers(0, VOCABULARY, _length(sizes.prompt_tokens, rng), dtype=np.int32)

    proposal = episode(Role.PROPOSER, prompt(), Verdict.INVALID) if ticket.kind == "proposal" else None
    shown, right = prompt(), sizes.attempts // 2
    attempts = tuple(
        episode(Role.SOLVER, shown, Verdict.CORRECT if i < right else Verdict.WRONG) for i in range(sizes.attempts)
    )
    return ClosedTicket(ticket.id, proposal, None, ticket.problem, attempts, right / sizes.attempts)


def _length(most: int, rng: np.random.Generator) -> int:
    return int(rng.integers(max(1, most // 2), most + 1))


def made_anew(made: ClosedTicket, ticket: Ticket) -> ClosedTicket:
    """The same tokens for the ticket of the same index of another batch."""
    version = ticket.id.batch

    def again(episode: Episode) -> Episode:
        return replace(episode, task=ticket.task, spans=(VersionSpan(version, 0, len(episode.response_ids)),))

    return replace(
        made,
        id=ticket.id,
        proposal=None if made.proposal is None else again(made.proposal),
        problem=ticket.problem,
        attempts=tuple(map(again, made.attempts)),
    )


def make_collector(config: Config) -> Collector:
    """With problems of a few characters, as those of primes are."""
    seeds = {task: [Problem(task, f"{i},{i + 2}", f"{i}", f"{i}", "1") for i in range(8)] for task in Task}
    return Collector(
        ProblemBuffer(seeds, capacity=config.selfplay.buffer_capacity, seed=0),
        tasks=list(Task),
        selfplay=config.selfplay,
        rewards=config.rewards,
        limits=TokenLimits(config.sampling.max_prompt_tokens, config.sampling.max_response_tokens, VOCABULARY),
        seed=0,
    )


class StreamedRun:
    """The learner's end here, with journal and all; a worker's in a process of its own. Batch after batch."""

    def __init__(self, endpoint: str, sizes: Sizes, folder: Path, keys: tuple[ServerKeys, ClientKeys] | None) -> None:
        keep_freed_memory()
        config = sizes.config()
        self.folder = folder
        folder.mkdir(mode=0o700)
        self._journal = Journal(folder / JOURNAL)
        self._pool = WorkerPool(
            endpoint,
            config,
            Identity("m", "t", "e"),
            make_collector(config),
            self._journal,
            keys=None if keys is None else keys[0],
        )
        spawn = get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        arguments = (endpoint, sizes, None if keys is None else keys[1], theirs)
        self._process = spawn.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        self._pool.wait_for_workers(1, PATIENCE_S)
        self._batch = 0

    def round(self) -> Streamed:
        """A whole batch."""
        pool, batch = self._pool, self._batch
        pool.prove(pool.members(), batch)
        pool.open_through(batch, batch)
        if not self._pipe.poll(PATIENCE_S) or self._pipe.recv() != "ready":
            raise RuntimeError("the worker's end has not got its tickets")
        pool.stream_cost()
        began = time.process_time()
        self._pipe.send(True)
        pool.wait_for_batch(batch)
        seconds, worker_cpu_s = self._pipe.recv()
        cpu_s = time.process_time() - began
        cost = pool.stream_cost()
        self._batch += 1
        return Streamed(seconds, worker_cpu_s, cpu_s, cost.cpu_s, cost.messages, cost.bytes)

    @property
    def journal_bytes(self) -> int:
        """Written up to now."""
        return self._journal.end

    def close(self) -> None:
        """Send the worker home, and close everything."""
        self._pool.send_home()
        self._pool.close()
        self._process.join(10)
        self._process.kill()
        self._journal.close()


def _work(endpoint: str, sizes: Sizes, keys: ClientKeys | None, pipe: Connection) -> None:
    keep_freed_memory()
    asyncio.run(_WorkersEnd(endpoint, sizes, keys, pipe).run())


class _WorkersEnd:
    """Closes all tickets of a batch, one right after the other, once it has them all and is told to."""

    def __init__(self, endpoint: str, sizes: Sizes, keys: ClientKeys | None, pipe: Connection) -> None:
        self._sizes = sizes
        self._pipe = pipe
        self._client = StreamClient(endpoint, max_message_bytes=2**28, keys=keys)
        self._outbox = Outbox(self._client.send, most_bytes=sizes.batch_kib * 2**10, wait_s=sizes.batch_ms / 1000)
        self._session = Session()
        self._count = 6 * sizes.config().selfplay.proposals_per_task
        self._made: list[ClosedTicket] = []
        self._unacknowledged = 0
        self._all_acknowledged = asyncio.Event()

    async def run(self) -> None:
        hello = msg.Hello(msg.PROTOCOL_VERSION, "rollout-0", self._session.incarnation, "m", "t", "e")
        await self._client.send(msg.encode(hello))
        sending = asyncio.create_task(self._outbox.run())
        closing: set[asyncio.Task[None]] = set()
        tickets: list[Ticket] = []
        while True:
            match await self._client.receive(PATIENCE_S * 10):
                case msg.Work(dealt):
                    tickets += self._session.begin(dealt)
                    if len(tickets) == self._count:
                        closing.add(asyncio.create_task(self._close_all(tickets)))
                        tickets = []
                case msg.Ack(sequences):
                    self._session.acknowledged(sequences)
                    self._unacknowledged -= len(sequences)
                    if not self._unacknowledged:
                        self._all_acknowledged.set()
                case msg.Bye():
                    break
        for task in {sending, *closing}:
            task.cancel()
        self._client.close()

    async def _close_all(self, tickets: list[Ticket]) -> None:
        if not self._made:
            rng = np.random.default_rng(0)
            self._made = [made_ticket(ticket, self._sizes, rng) for ticket in sorted(tickets, key=lambda t: t.id)]
        made = {m.id.index: m for m in self._made}
        closed = [made_anew(made[ticket.id.index], ticket) for ticket in tickets]
        self._unacknowledged = len(closed)
        self._all_acknowledged.clear()
        self._pipe.send("ready")
        await asyncio.to_thread(self._pipe.recv)
        cpu_s, begin = time.process_time(), time.perf_counter()
        for number, each in enumerate(closed, 1):
            self._outbox.put(self._session.close(each))
            if number % CLOSE_AT_ONCE == 0:
                await asyncio.sleep(0)  # all else on the loop has its turn
        await self._all_acknowledged.wait()
        self._pipe.send((time.perf_counter() - begin, time.process_time() - cpu_s))
