"""The rollout worker's process: an engine, the stream, and what arrives on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.chat import ChatTokenizer
from rollout.engine import Engine
from rollout.environment import make_environment
from rollout.evaluation import evaluate
from rollout.outbox import Outbox
from rollout.selfplay import SelfPlay
from rollout.session import Session
from shared import messages as msg
from shared.config import Config
from shared.episodes import Ticket
from shared.errors import PrimezeroError, SentAwayError, WeightSyncError, WorkerFailedError, described
from shared.heap import keep_freed_memory
from shared.model_folder import model_fingerprint, tokenizer_fingerprint
from shared.transport import ClientKeys, StreamClient

LIVENESS_INTERVAL_S = 5.0
ALIVE_INTERVAL_S = 2.0
LAST_WORDS_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What the launcher tells a worker: its name, where the learner's stream is and, over tcp, the keys to it."""

    name: str
    endpoint: str
    keys: ClientKeys | None = field(default=None, repr=False)


def run_worker(config: Config, spec: WorkerSpec, beat: Callable[[], None]) -> None:
    """One rollout worker, from start to end; returns when the learner says so.

    beat: called every few seconds, once the engine is there only after a round trip through it
    """
    keep_freed_memory()
    asyncio.run(_run(config, spec, beat))


async def _run(config: Config, spec: WorkerSpec, beat: Callable[[], None]) -> None:
    log.info("starts the engine")
    engine = await _start_engine(config, beat)
    log.info("waits for the learner")
    client = StreamClient(spec.endpoint, max_message_bytes=config.stream.max_message_mib * 2**20, keys=spec.keys)
    try:
        await RolloutWorker(config, spec, engine, client, beat).run()
    finally:
        client.close()
        await engine.shutdown()


async def start_engine(config: Config) -> Engine:
    """The engine of a run, with the weights of its model folder; raises what `Engine.start` does."""
    return await Engine.start(
        config.model.path,
        dtype=config.model.dtype,
        seed=config.run.seed,
        rollout=config.rollout,
        max_model_len=config.sampling.max_prompt_tokens + config.sampling.max_response_tokens,
        sync=config.sync,
        transport=config.transport,
    )


async def _start_engine(config: Config, beat: Callable[[], None]) -> Engine:
    starting = asyncio.create_task(_keep_beating(beat))  # the start has a limit of its own
    try:
        return await start_engine(config)
    finally:
        starting.cancel()


async def _keep_beating(beat: Callable[[], None]) -> None:
    while True:
        beat()
        await asyncio.sleep(ALIVE_INTERVAL_S)


class RolloutWorker:
    """Greets the learner, works through tickets, answers calls, until told to leave.

    Who the learner knows is an incarnation of a worker. On every new connection that is named again, and all goes on
    from where it was (`Session`). When the learner, perhaps another one by now, does not know it, all work is dropped
    and it says hello as a new one; the engine stays. While the learner is away it waits.
    """

    def __init__(
        self,
        config: Config,
        spec: WorkerSpec,
        engine: Engine,
        client: StreamClient,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._beat = beat
        self._config = config
        self._spec = spec
        self._engine = engine
        self._client = client
        self._environment = make_environment(config.environment)
        self._chat = ChatTokenizer.from_folder(config.model.path)
        self._selfplay = SelfPlay(config, engine, self._environment, self._chat)
        self._session = Session()
        self._outbox = Outbox(
            client.send, most_bytes=config.stream.batch_kib * 2**10, wait_s=config.stream.batch_ms / 1000
        )
        self._version: int | None = None
        # Set while the learner has seen the weights now live pass the probe, in this incarnation.
        self._weights_proven = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._steps: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Until the learner says Bye. A failure in any part is reported to the learner if it can be, and raised."""
        receiving = asyncio.create_task(self._receive())
        try:
            # Handshakes are watched from the beginning: where this worker is refused, sending its hello never ends.
            self._start(self._client.watch_handshakes(), self._watching)
            self._start(self._say_hello(), self._watching)
            self._start(self._outbox.run(), self._watching)
            self._start(self._watch_engine(), self._watching)
            self._start(self._say_alive(), self._watching)
            await asyncio.wait({receiving, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            receiving.result()
        except Exception as error:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._client.send(msg.encode(msg.Failed(_reason(error)))), LAST_WORDS_S)
            raise
        finally:
            running = {receiving, *self._tasks, *self._steps, *self._watching}
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _say_hello(self) -> None:
        hello = msg.Hello(
            protocol=msg.PROTOCOL_VERSION,
            worker=self._spec.name,
            incarnation=self._session.incarnation,
            model=model_fingerprint(self._config.model.path),
            tokenizer=tokenizer_fingerprint(self._config.model.path),
            environment=self._environment.fingerprint,
            resumes=self._session.resumes,
        )
        await self._client.send(msg.encode(hello))

    async def _begin_anew(self) -> None:
        """As a new incarnation, which has done nothing yet."""
        self._session = Session()
        self._outbox.clear()
        for task in self._tasks:
            task.cancel()
        # Begun steps end by themselves, within the engine's limits: cut short, they would leave it unusable.
        await asyncio.gather(*self._tasks, *self._steps, return_exceptions=True)
        self._version = None
        self._weights_proven.clear()
        await self._engine.forget_learner()
        await self._say_hello()

    async def _receive(self) -> None:
        while True:
            match await self._client.receive():
                case msg.Welcome(lineage, incarnation):
                    if incarnation == self._session.incarnation:
                        log.info("welcomed into lineage %d", lineage)
                        self._outbox.clear()
                        for frame in self._session.welcomed(lineage):
                            self._outbox.put(frame)
                case msg.Greet():
                    if self._session.resumes:
                        log.warning("the learner does not know this connection: saying hello again")
                        self._session.lineage = None
                        self._outbox.clear()
                        await self._say_hello()
                    else:  # its hello may have been lost, or have been heard: then that incarnation is not used
                        await self._begin_anew()
                case msg.Forgotten(incarnation):
                    if incarnation == self._session.incarnation:
                        log.warning("the learner does not know this worker: beginning anew")
                        await self._begin_anew()
                case msg.Refused(reason):
                    if not self._session.resumes:
                        raise WorkerFailedError(f"the learner refused this worker: {reason}")
                    raise SentAwayError(f"the learner gave this worker up: {reason}")
                case msg.Bye():
                    return
                case _ if self._session.lineage is None:
                    pass
                case msg.Work(tickets):
                    for ticket in self._session.begin(tickets):
                        self._start(self._work(ticket), self._tasks)
                case msg.Call(id, request):
                    if self._session.begin_call(id):
                        steps = isinstance(request, msg.FinishUpdate | msg.Sleep | msg.Wake)
                        self._start(self._answer(id, request), self._steps if steps else self._tasks)
                    elif (result := self._session.answer_of(id)) is not None:
                        await self._client.send(msg.encode(msg.Reply(id, result)))
                case msg.Ack(sequences):
                    self._session.acknowledged(sequences)
                case msg.Alive():
                    pass
                case msg.ProbePassed(version):
                    if version == self._version:
                        self._weights_proven.set()
                case message:
                    raise WorkerFailedError(f"the learner may not send {type(message).__name__}")

    def _start(self, coroutine: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(coroutine)
        group.add(task)
        task.add_done_callback(group.discard)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _watch_engine(self) -> None:
        while True:
            await asyncio.sleep(LIVENESS_INTERVAL_S)
            await self._engine.check_alive()
            self._beat()

    async def _say_alive(self) -> None:
        """Whoever has a broken engine does not get here: `_watch_engine` ends the worker."""
        while True:
            await asyncio.sleep(ALIVE_INTERVAL_S)
            await self._client.send(msg.encode(msg.Alive()))

    async def _work(self, ticket: Ticket) -> None:
        closed = await self._selfplay.play(ticket)
        await self._weights_proven.wait()
        began = time.thread_time()
        frame = self._session.close(closed)
        self._outbox.spent(time.thread_time() - began)
        if self._session.lineage is not None:  # otherwise when it is welcomed again
            self._outbox.put(frame)

    async def _answer(self, id: int, request: msg.Request) -> None:
        session = self._session
        try:
            result = await self._do(request)
        except Exception as error:
            log.exception("a call failed: %s", type(request).__name__)
            result = msg.CallFailed(_reason(error))
        session.answer(id, result)
        if session is self._session and session.lineage is not None:  # otherwise it is asked again
            await self._client.send(msg.encode(msg.Reply(id, result)))
        if isinstance(result, msg.CallFailed):
            await self._engine.check_alive()  # where the engine has become unusable, that is this worker's end

    async def _do(self, request: msg.Request) -> msg.Result:
        match request:
            case msg.InitTransfer(info):
                await self._engine.init_weight_transfer(info)
            case msg.StartUpdate():
                await self._engine.start_weight_update()
            case msg.UpdateWeights(info):
                await self._engine.update_weights(info)
            case msg.FinishUpdate(version, probe):
                return await self._finish_update(version, probe)
            case msg.Sleep(for_update):
                await self._engine.sleep(for_update=for_update)
            case msg.Wake():
                await self._engine.wake()
            case msg.Evaluate(version):
                evaluation = await evaluate(
                    self._engine,
                    self._environment,
                    self._chat,
                    version=version,
                    problems_per_task=self._config.environment.evaluation_problems_per_task,
                    max_response_tokens=self._config.sampling.max_response_tokens,
                    # Time in the engine's queue would count against rollout.request_timeout_s.
                    at_once=self._config.rollout.max_sequences,
                )
                return msg.Evaluated(evaluation)
        return msg.Done()

    async def _finish_update(self, version: int, probe: Sequence[int]) -> msg.UpdateFinished:
        if self._version is not None and version < self._version:
            raise WeightSyncError(f"weight version {version} after {self._version}: a lineage never goes backwards")
        self._weights_proven.clear()
        self._version = version
        timings = await self._engine.finish_weight_update(version)
        scores = await self._engine.score(probe, f"probe-{version}")
        return msg.UpdateFinished(tuple(scores.tolist()), timings.pause_s, timings.live)


def _reason(error: Exception) -> str:
    reason = str(error) if isinstance(error, PrimezeroError) else described(error)
    return reason[: msg.MAX_REASON_CHARACTERS]
